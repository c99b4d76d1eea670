"""One thread that runs the model: it decodes the rows of all adapters in one batch.

Between two steps requests join the batch and leave it, and adapters are loaded and deleted. A request joins when a row
is free and the cache has room for all tokens that the batch may come to, so that a joined request never has to wait.
Requests join in the order in which they came.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from ..finetune.errors import UserError, as_user_error
from .adapters import Adapters
from .batch import Batch
from .errors import ApiError
from .generation import Generation
from .limits import Limits
from .metrics import Metrics
from .sampling import next_tokens

# What PyTorch and transformers raise in a forward pass, such as for a lack of memory: RuntimeError.
MODEL_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError)
ENDING = "this server is shutting down"


class Scheduler:
    """`submit` and `cancel` may be called from any thread.

    ends: the tokens that end an answer. pad: the token in columns of padding.
    """

    def __init__(self, adapters: Adapters, limits: Limits, metrics: Metrics, ends: frozenset[int], pad: int):
        self.adapters = adapters
        self._limits = limits
        self._metrics = metrics
        self.ends = ends
        self._batch = Batch(adapters, pad)
        self._waiting: deque[Generation] = deque()
        self._running: list[Generation] = []
        self._calls: deque[tuple[Callable, Future]] = deque()
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
        return len(self._running)

    def submit(self, generation: Generation) -> None:
        """Queues a request. ApiError: 429 if the queue is full, 503 if the server shuts down."""
        with self._wake:
            if self._refuses:
                raise ApiError(503, ENDING)
            if len(self._waiting) >= self._limits.queue:
                raise ApiError(429, f"{len(self._waiting)} requests wait already; try again later", code="queue_full")
            if generation.columns > self._limits.cells:
                raise ApiError(
                    400,
                    f"a prompt of {len(generation.prompt)} tokens with an answer of {generation.most} does not fit "
                    f"into the cache of {self._limits.cells} tokens; ask for a smaller max_tokens",
                    code="context_length_exceeded",
                    param="max_tokens",
                )
            self._waiting.append(generation)
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

    def call(self, function: Callable) -> Future:
        """Calls function() between two steps, on the thread of the model, which a change of its adapters needs."""
        future: Future = Future()
        with self._wake:
            if self._refuses:
                raise ApiError(503, ENDING)
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def drain(self, seconds: float) -> None:
        """Refuses new requests; those that run or wait have this time to finish, then they are told."""
        with self._wake:
            self._refuses = True
            deadline = time.monotonic() + seconds
            self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)
            self._wake.notify()

    def stop(self) -> None:
        """Ends all requests, and the thread."""
        self.drain(0)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait():
                self._calls_now()
                self._leave()
                for name in self.adapters.sweep():
                    self._metrics.forget(name)
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    return
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
        """Sleeps until there is work; False when the server drains and no request is left."""
        with self._wake:
            while not (self._running or self._waiting or self._calls or self.adapters.has_retired):
                if self._deadline is not None:
                    return False
                self._wake.wait()
            return True

    def _calls_now(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except (UserError, ApiError) as error:
                    future.set_exception(error)
                finally:
                    if not future.done():  # an error that ends this thread; the caller must not wait for ever
                        future.set_exception(ApiError(503, ENDING))

    def _leave(self) -> None:
        """Removes the requests whose clients have gone."""
        gone = [generation for generation in self._running if generation.is_cancelled]
        with self._wake:
            gone += [generation for generation in self._waiting if generation.is_cancelled]
            self._waiting = deque(generation for generation in self._waiting if not generation.is_cancelled)
        self._end({generation: ApiError(499, "the client has gone") for generation in gone})

    def _join(self) -> None:
        """Moves waiting requests into the batch and chooses their first tokens."""
        joining: list[Generation] = []
        with self._wake:
            while self._waiting and self._has_room(joining, self._waiting[0]):
                joining.append(self._waiting.popleft())
            self._running += joining
        if joining:
            self._metrics.joined(joining)
            self._take(joining, self._batch.join([generation.row for generation in joining]))

    def _has_room(self, joining: list[Generation], candidate: Generation) -> bool:
        rows = len(self._running) + len(joining) + 1
        columns = max(generation.columns for generation in (*self._running, *joining, candidate))
        prompts = [len(generation.prompt) for generation in (*joining, candidate)]
        padded = max(prompts) * len(prompts)
        return (
            rows <= self._limits.rows
            and (rows * columns <= self._limits.cells or rows == 1)
            and (padded <= self._limits.prefill or len(prompts) == 1)
        )

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
            self._metrics.token(generation)
            if end is not None:
                ends[generation] = end
        self._end(ends)

    def _end(self, ends: dict) -> None:
        """Removes requests from the batch, and tells each its end."""
        if not ends:
            return
        self._running = [generation for generation in self._running if generation not in ends]
        self._batch.keep([generation.row for generation in self._running])
        for generation, end in ends.items():
            self.adapters.release(generation.adapter)
            self._metrics.ended(generation, end)
            generation.tell(end)

    def _fail(self, error: ApiError, waiting: bool = False) -> None:
        """Ends all requests of the batch, and on request those that wait, with an error."""
        with self._wake:
            failed = self._running + (list(self._waiting) if waiting else [])
            if waiting:
                self._waiting.clear()
                for _, future in self._calls:
                    future.set_exception(error)
                self._calls.clear()
        self._running = []
        self._batch.clear()
        self._end(dict.fromkeys(failed, error))
