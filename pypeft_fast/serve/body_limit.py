"""Refuses a request whose body is too large, before the body is in memory, or arrives too slowly."""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ENDING, ApiError


class BodyLimit:
    """ASGI middleware: 413 in OpenAI's form for a body of more than `most` bytes. The declared length is checked before
    a byte is read, and a body of unknown length while it is read. 408 for a body that has not arrived after so many
    `seconds`, and 503 for one that has not when the server ends. The connection is closed then."""

    def __init__(self, app: ASGIApp, most: int, seconds: float, ending: asyncio.Event):
        self._app = app
        self._most = most
        self._seconds = seconds
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._most:
            await _answer(self._too_large())(scope, receive, send)
            return
        read, is_whole = 0, False
        end = asyncio.get_running_loop().time() + self._seconds

        async def limited() -> Message:
            nonlocal read, is_whole
            if is_whole:  # what comes then is the end of the connection
                return await receive()
            message = await self._next(receive, end - asyncio.get_running_loop().time())
            read += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if read > self._most:
                raise _Refused(self._too_large())
            return message

        try:
            await self._app(scope, limited, send)
        except _Refused as refused:
            await _answer(refused.error)(scope, receive, send)

    async def _next(self, receive: Receive, seconds: float) -> Message:
        """The next message. _Refused if none comes within this time, or before the server ends."""
        tasks = [asyncio.ensure_future(receive()), asyncio.ensure_future(self._ending.wait())]
        try:
            await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                return tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)  # a cancellation of this task itself is not held back
        if self._ending.is_set():
            raise _Refused(ApiError(503, ENDING))
        raise _Refused(ApiError(408, f"the body has not arrived within {self._seconds:g} seconds"))

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body of a request has at most {self._most} bytes here", code="body_too_large")


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers={"Connection": "close"})


class _Refused(BaseException):
    """Not an Exception: FastAPI turns every Exception while it reads a body into an answer of its own."""

    def __init__(self, error: ApiError):
        super().__init__(error.message)
        self.error = error
