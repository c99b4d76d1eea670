"""Answers over HTTP: what the scheduler tells, as one JSON object or as server-sent events."""

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from .errors import ApiError
from .generation import End, Generation
from .replies import DONE, Reply, event
from .scheduler import Scheduler


class Told:
    """Carries what a scheduler tells from its thread into the event loop."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue = asyncio.Queue()

    def tell(self, event: str | End | ApiError) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def next(self) -> str | End:
        """The next piece of text, or the end. Raises the ApiError that the scheduler told."""
        told = await self._queue.get()
        if isinstance(told, ApiError):
            raise told
        return told


async def whole(request: Request, scheduler: Scheduler, generation: Generation, told: Told) -> Response:
    """One JSON object. If the client disconnects meanwhile, the request leaves the batch."""
    watching = asyncio.ensure_future(_until_gone(request))
    watching.add_done_callback(lambda _: scheduler.cancel(generation))
    try:
        pieces = []
        while not isinstance(piece := await told.next(), End):
            pieces.append(piece)
        return JSONResponse(Reply(generation.adapter.name).whole("".join(pieces), piece))
    finally:
        watching.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Streamed(StreamingResponse):
    """Server-sent events. However the response ends, also before its first event, the request leaves the batch."""

    def __init__(self, scheduler: Scheduler, generation: Generation, told: Told, with_usage: bool):
        super().__init__(_events(generation, told, with_usage), media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self._leave = lambda: scheduler.cancel(generation)

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _events(generation: Generation, told: Told, with_usage: bool) -> AsyncIterator[bytes]:
    reply = Reply(generation.adapter.name)
    yield reply.begin()
    try:
        while not isinstance(piece := await told.next(), End):
            yield reply.piece(piece)
    except ApiError as error:
        yield event(error.body())
        return
    yield reply.end(piece)
    if with_usage:
        yield reply.usage(piece)
    yield DONE
