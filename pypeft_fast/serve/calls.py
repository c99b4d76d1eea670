"""Functions that other threads have called on the thread of the model, between two steps."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from ..finetune.errors import UserError
from .errors import ApiError


class Calls:
    """A queue of functions. `add` and `refuse` need a lock of the user's; one thread runs them."""

    def __init__(self):
        self._queue: deque[tuple[Callable, Future]] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, function: Callable) -> Future:
        """The future of the function's value, or of its UserError or ApiError."""
        future: Future = Future()
        self._queue.append((function, future))
        return future

    def run(self, ending: ApiError) -> None:
        """Runs the functions. Another error than these two goes on to the caller of `run`, and the future gets
        `ending`, so that nobody waits for it for ever."""
        while self._queue:
            function, future = self._queue.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except (UserError, ApiError) as error:
                future.set_exception(error)
            finally:
                if not future.done():
                    future.set_exception(ending)

    def refuse(self, error: ApiError) -> None:
        """Ends all calls that have not run."""
        while self._queue:
            _, future = self._queue.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
