"""Refuses a request whose body is too large, before the body is in memory."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError


class BodyLimit:
    """ASGI middleware: 413 in OpenAI's form for a body of more than `most` bytes. The declared length is checked before
    a byte is read, and a body of unknown length while it is read; the connection is closed then."""

    def __init__(self, app: ASGIApp, most: int):
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._most:
            await self._refusal()(scope, receive, send)
            return
        read = 0

        async def limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise _TooLarge
            return message

        try:
            await self._app(scope, limited, send)
        except _TooLarge:
            await self._refusal()(scope, receive, send)

    def _refusal(self) -> JSONResponse:
        error = ApiError(413, f"the body of a request has at most {self._most} bytes here", code="body_too_large")
        return JSONResponse(error.body(), error.status, headers={"Connection": "close"})


class _TooLarge(BaseException):
    """Not an Exception: FastAPI turns every Exception while it reads a body into an answer of its own."""
