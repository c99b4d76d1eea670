"""The requests that wait for a row of the batch, and which of them can join."""

from collections import deque

from .errors import ApiError
from .generation import Generation
from .limits import Limits


class Waiting:
    """A queue, in the order in which requests came. Its user holds a lock around each call."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._queue: deque[Generation] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, generation: Generation) -> None:
        """ApiError: 429 if the queue is full, 400 for a request that the cache cannot hold even alone."""
        self.check_room()
        if generation.columns > self._limits.cells:
            raise ApiError(
                400,
                f"a prompt of {len(generation.prompt)} tokens with an answer of {generation.most} does not fit into "
                f"the cache of {self._limits.cells} tokens; ask for a smaller max_tokens",
                code="context_length_exceeded",
                param="max_tokens",
            )
        self._queue.append(generation)

    def check_room(self, coming: int = 0) -> None:
        """ApiError 429 if the queue is full, with so many requests that come to it."""
        waiting = len(self._queue) + coming
        if waiting >= self._limits.queue:
            raise ApiError(429, f"{waiting} requests wait already; try again later", code="queue_full")

    def take(self, running: list[Generation]) -> list[Generation]:
        """Removes and returns the first requests that can join these running ones together."""
        joining: list[Generation] = []
        while self._queue and self._has_room(running, joining, self._queue[0]):
            joining.append(self._queue.popleft())
        return joining

    def take_gone(self) -> list[Generation]:
        """Removes and returns the requests whose clients have gone."""
        gone = [generation for generation in self._queue if generation.is_cancelled]
        self._queue = deque(generation for generation in self._queue if not generation.is_cancelled)
        return gone

    def take_all(self) -> list[Generation]:
        found, self._queue = list(self._queue), deque()
        return found

    def _has_room(self, running: list[Generation], joining: list[Generation], candidate: Generation) -> bool:
        """Whether the batch has a row, the cache all columns that the batch can come to, and one read all prompts."""
        every = [*running, *joining, candidate]
        prompts = [len(generation.prompt) for generation in (*joining, candidate)]
        cells = len(every) * max(generation.columns for generation in every)
        return (
            len(every) <= self._limits.rows
            and (cells <= self._limits.cells or len(every) == 1)
            and (max(prompts) * len(prompts) <= self._limits.prefill or len(prompts) == 1)
        )
