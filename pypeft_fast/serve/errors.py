"""The errors of an HTTP answer, in the form of the OpenAI interface."""

from ..finetune.errors import UserError
from ..finetune.text import one_line, quoted

INVALID = "invalid_request_error"
OURS = "server_error"
ENDING = "this server is shutting down"


class ApiError(Exception):
    """An error that a client is told: an HTTP status and the fields of OpenAI's error object."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param

    def body(self) -> dict:
        """{"error": {"message", "type", "param", "code"}}"""
        kind = INVALID if self.status < 500 else OURS
        error = {"message": one_line(self.message), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def refused(error: UserError, param: str | None = None, code: str | None = None) -> ApiError:
    """The answer to a request with a mistake that the library found."""
    return ApiError(400, str(error), code=code, param=param)


def unknown_model(name: str, known: list[str]) -> ApiError:
    return ApiError(
        404,
        f"the model {quoted(name)} does not exist; there are: {', '.join(known)}",
        code="model_not_found",
        param="model",
    )
