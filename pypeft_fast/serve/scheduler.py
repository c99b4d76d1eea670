"""One thread that runs the model: it decodes the rows of all adapters in one batch.

Between two steps requests join the batch and leave it, and adapters are loaded and deleted. A request joins when a row
is free and the cache has room for all tokens that the batch may come to, so that a joined request never has to wait.
Requests join in the order in which they came. A long prompt is read in parts, between which the batch makes its steps.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from ..finetune.errors import UserError, as_user_error
from .adapters import Adapter, Adapters
from .batch import Batch, Reading
from .calls import Calls
from .errors import ENDING, ApiError
from .generation import Generation
from .limits import Limits
from .metrics import Metrics
from .sampling import next_tokens
from .waiting import Waiting

# What PyTorch and transformers raise in a forward pass, such as for a lack of memory: RuntimeError.
MODEL_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)


class Scheduler:
    """`submit` and `cancel` may be called from any thread.

    ends: the tokens that end an answer. pad: the token in columns of padding.
    """

    def __init__(self, adapters: Adapters, limits: Limits, metrics: Metrics, ends: frozenset[int], pad: int):
        self.adapters = adapters
        self._part = limits.prefill
        self._metrics = metrics
        self.ends = ends
        self._batch = Batch(adapters, pad)
        self._waiting = Waiting(limits)
        self._joining: list[Generation] = []  # whose prompts are being read
        self._reading: Reading | None = None  # of those
        self._running: list[Generation] = []  # the rows of the batch, in its order
        self._calls = Calls()
        self._wake = threading.Condition()
        self._deadline: float | None = None  # after it all requests end
        self._refuses = False
        self._thread = threading.Thread(target=self._run, name="pypeft-fast model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def has_failed(self) -> bool:
        """Whether an error has ended the thread, whose message is on stderr."""
        return self._deadline is None and not self.is_alive

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have a row, also those whose prompt is being read."""
        return len(self._joining) + len(self._running)

    def check_room(self, coming: int = 0) -> None:
        """ApiError 503 or 429 if a request would be refused, before work is spent on it, after those that come now."""
        with self._wake:
            if self._refuses:
                raise ApiError(503, ENDING)
            self._waiting.check_room(coming)

    def submit(self, generation: Generation) -> None:
        """Queues a request. ApiError as `Waiting.add` raises it, and 503 if the server shuts down."""
        with self._wake:
            if self._refuses:
                raise ApiError(503, ENDING)
            self._waiting.add(generation)
            self._wake.notify()

    def cancel(self, generation: Generation) -> None:
        """The client has gone: the request leaves the queue or the batch before the next step."""
        with self._wake:
            generation.is_cancelled = True
            self._wake.notify()

    def remove(self, name: str) -> None:
        """`Adapters.remove`; the thread of the model deletes the adapter when no request has it."""
        self.adapters.remove(name)
        with self._wake:
            self._wake.notify()

    def release(self, adapter: Adapter) -> None:
        """`Adapters.release`, for a request that was not queued."""
        self.adapters.release(adapter)
        with self._wake:
            self._wake.notify()

    def call(self, function: Callable) -> Future:
        """Calls function() between two steps, on the thread of the model, which a change of its adapters needs."""
        with self._wake:
            if self._refuses:
                raise ApiError(503, ENDING)
            self._wake.notify()
            return self._calls.add(function)

    def drain(self, seconds: float) -> None:
        """Refuses new requests; those that run or wait have this time to finish, then they are told."""
        with self._wake:
            self._refuses = True
            deadline = time.monotonic() + seconds
            self._deadline = min(deadline, self._deadline or deadline)
            self._wake.notify()

    def stop(self) -> None:
        """Ends all requests, and the thread."""
        self.drain(0)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._calls.run(ApiError(503, ENDING))
                self._leave()
                for name in self.adapters.sweep():
                    self._metrics.forget(name)
                try:
                    with as_user_error("the model cannot answer", MODEL_ERRORS):
                        self._join()
                        self._step()
                except UserError as error:
                    self._fail(ApiError(500, str(error)))
        finally:
            with self._wake:
                self._refuses = True
            self._fail(ApiError(503, ENDING), waiting=True)

    def _wait(self) -> bool:
        """Sleeps until there is work; False when the server drains, and no request or no time is left."""
        with self._wake:
            while not (self.running or self._waiting or self._calls or self.adapters.has_retired):
                if self._deadline is not None:
                    return False
                self._wake.wait()
            return self._deadline is None or time.monotonic() < self._deadline

    def _leave(self) -> None:
        """Removes the requests whose clients have gone."""
        gone = [generation for generation in self._running if generation.is_cancelled]
        if all(generation.is_cancelled for generation in self._joining):  # else a row leaves when it has been read
            gone, self._joining, self._reading = gone + self._joining, [], None
        with self._wake:
            gone += self._waiting.take_gone()
        self._end({generation: ApiError(499, "the client has gone") for generation in gone})

    def _join(self) -> None:
        """Reads a part of the prompts of joining requests; after the last part, chooses their first tokens."""
        if not self._joining:
            with self._wake:
                self._joining = self._waiting.take(self._running)
            if not self._joining:
                return
            self._reading = self._batch.begin([generation.row for generation in self._joining])
            self._metrics.joined(self._joining)
        logits = self._batch.read(self._reading, self._part)
        if logits is not None:
            joined, self._joining, self._reading = self._joining, [], None  # whose cache is the batch's now, or free
            self._running += joined
            self._take(joined, logits)

    def _step(self) -> None:
        if self._running:
            began = time.monotonic()
            self._take(list(self._running), self._batch.step())
            self._metrics.stepped(time.monotonic() - began)

    def _take(self, generations: list[Generation], logits) -> None:
        """Chooses the next token of each of these requests from its row of the logits."""
        tokens = next_tokens(logits, [generation.sampling for generation in generations])
        ends = {}
        for generation, token in zip(generations, tokens, strict=True):
            end = generation.take(token, self.ends)
            if token is not None:  # else its logits were not finite
                self._metrics.token(generation)
            if end is not None:
                ends[generation] = end
        self._end(ends)

    def _end(self, ends: dict) -> None:
        """Removes requests from the batch, and tells each its end."""
        self._running = [generation for generation in self._running if generation not in ends]
        self._batch.keep([generation.row for generation in self._running])
        for generation, end in ends.items():
            self.adapters.release(generation.adapter)
            self._metrics.ended(generation, end)
            generation.tell(end)

    def _fail(self, error: ApiError, waiting: bool = False) -> None:
        """Ends all requests of the batch, and on request those that wait, with an error."""
        with self._wake:
            failed = self._running + self._joining
            if waiting:
                failed += self._waiting.take_all()
                self._calls.refuse(error)
        self._running, self._joining, self._reading = [], [], None
        self._batch.clear()
        self._end(dict.fromkeys(failed, error))
