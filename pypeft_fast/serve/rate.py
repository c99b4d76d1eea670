"""How many tokens a second a server has produced lately."""

import time
from collections import deque

SECONDS = 10.0


class Rate:
    """Counts tokens; `now` is the mean of the last SECONDS. One thread adds, any thread reads."""

    def __init__(self, clock=time.monotonic):
        self._clock = clock
        self._added: deque[tuple[float, int]] = deque()

    def add(self, tokens: int) -> None:
        self._added.append((self._clock(), tokens))
        while self._added and self._added[0][0] < self._clock() - SECONDS:
            self._added.popleft()

    def now(self) -> float:
        """Tokens a second."""
        since = self._clock() - SECONDS
        return sum(tokens for at, tokens in tuple(self._added) if at >= since) / SECONDS
