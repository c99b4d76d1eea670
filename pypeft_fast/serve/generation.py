"""A request for an answer, and what its client is told while the answer is decoded."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .adapters import Adapter
from .batch import Row
from .errors import ApiError
from .sampling import Sampling
from .text_stream import TextStream


@dataclass(frozen=True)
class End:
    """The end of an answer. reason: "stop" after an end token or a stop string, "length" after the last token."""

    reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(eq=False)
class Generation:
    """One request. The scheduler calls `tell` with pieces of text, and once with an End or an ApiError, the last call.

    most: the largest number of tokens of the answer.
    """

    adapter: Adapter
    prompt: list[int]
    sampling: Sampling
    most: int
    stream: TextStream
    tell: Callable[["str | End | ApiError"], None]
    is_cancelled: bool = False  # set by any thread: the client has gone
    begun: float = field(default_factory=time.monotonic)
    row: Row = field(init=False)

    def __post_init__(self):
        self.row = Row(self.adapter, self.prompt, [])

    @property
    def columns(self) -> int:
        """The most columns of the cache that the request can need."""
        return len(self.prompt) + self.most

    def take(self, token: int | None, ends: frozenset[int]) -> "End | ApiError | None":
        """Takes the next token, None for logits that are not finite, and tells its text. Returns the end, if it is."""
        if token is None:
            return ApiError(500, f"the logits of {self.adapter.name!r} are not finite for this prompt")
        self.row.answer.append(token)
        if token not in ends:
            self._tell(self.stream.add(token))
        is_last = len(self.row.answer) >= self.most
        if token in ends or self.stream.stopped:
            reason = "stop"
        elif is_last:
            reason = "length"
        else:
            return None
        self._tell(self.stream.end())
        if self.stream.stopped:
            reason = "stop"
        return End(reason, len(self.prompt), len(self.row.answer))

    def _tell(self, text: str) -> None:
        if text:
            self.tell(text)
