"""From the body of a request to its place in the queue: the request is counted before its prompt is tokenised."""

import contextlib
from collections.abc import Callable

from anyio import CapacityLimiter, to_thread

from .errors import ApiError
from .generation import End, Generation
from .limits import ANSWER, MESSAGE, MOST_UNREAD, Limits
from .prompts import Prompts
from .requests import ChatRequest
from .sampling import Sampling
from .scheduler import Scheduler
from .text_stream import TextStream


class Entrance:
    """Only the event loop uses it. One thread at a time tokenises, in the order in which requests came."""

    def __init__(self, scheduler: Scheduler, prompts: Prompts, tokenizer, limits: Limits):
        self._scheduler = scheduler
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._limits = limits
        self._turns = CapacityLimiter(1)
        self._requests = 0  # whose prompts are being tokenised, or wait for it
        self._characters = 0  # of these prompts

    async def enter(self, body: ChatRequest, tell: Callable[[str | End | ApiError], None]) -> Generation:
        """Queues a request, and returns it. The adapter is that which the name means now.

        ApiError, before the prompt is tokenised: 404 for an unknown adapter; 503 if the server shuts down; 429 if the
        queue is full, requests counted that come to it, or if too many characters wait for the tokenizer. Also what
        `Prompts.encode` and `Scheduler.submit` raise.
        """
        adapter = self._scheduler.adapters.acquire(body.model)
        try:
            messages = [message.plain() for message in body.messages]
            with self._counted(messages):
                encode = self._prompts.encode
                prompt = await to_thread.run_sync(encode, messages, adapter.template, limiter=self._turns)
                generation = Generation(
                    adapter,
                    prompt,
                    Sampling.seeded(body.temperature, body.top_p, body.seed),
                    min(body.most or ANSWER, self._limits.context - len(prompt)),
                    TextStream(self._tokenizer, body.stops),
                    tell,
                )
                self._scheduler.submit(generation)
                return generation
        except BaseException:  # also of a handler that is cancelled
            self._scheduler.release(adapter)
            raise

    @contextlib.contextmanager
    def _counted(self, messages):
        characters = sum(MESSAGE + len(message["content"]) for message in messages)
        self._scheduler.check_room(self._requests)
        if self._requests and self._characters + characters > MOST_UNREAD:
            raise ApiError(
                429,
                f"{self._characters} characters of prompts wait for the tokenizer already; try again later",
                code="queue_full",
            )
        self._requests += 1
        self._characters += characters
        try:
            yield
        finally:
            self._requests -= 1
            self._characters -= characters
