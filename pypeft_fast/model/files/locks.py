"""One lock for each model, which a thread holds while it puts the values of a file into the model's adapters."""

import threading
import weakref

_LOCKS = weakref.WeakKeyDictionary()
_FIRST = threading.Lock()  # while a model gets its lock


def lock_of(model) -> threading.RLock:
    """The model's lock. It is no attribute of the model, since copies and pickles of the model have no part in it."""
    with _FIRST:
        return _LOCKS.setdefault(model, threading.RLock())
