"""Checkpointing where rows have adapters of their own: a block that runs again gets the rows that it had.

The backward pass runs the block again when the call that named the rows is over; on a GPU in a thread of autograd's.
"""

import functools

from . import rows

# Where transformers and torch.distributed keep the function that checkpoints a module.
_ATTRIBUTES = ("_gradient_checkpointing_func", "checkpoint_fn")


class KeepsRows:
    """A checkpointing function that gives the rows of the call to each run of what it checkpoints."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint

    def __call__(self, function, *args, **kwargs):
        found = rows.current()
        if found is not None:
            function = functools.partial(_with_rows, found, function)
        return self.checkpoint(function, *args, **kwargs)


def _with_rows(found, function, *args, **kwargs):
    with rows.kept(found):
        return function(*args, **kwargs)


def keep_rows(module) -> None:
    """Puts KeepsRows around the function that checkpoints this module, if there is one."""
    for name in _ATTRIBUTES:
        checkpoint = vars(module).get(name)
        if checkpoint is not None and not isinstance(checkpoint, KeepsRows):
            setattr(module, name, KeepsRows(checkpoint))
