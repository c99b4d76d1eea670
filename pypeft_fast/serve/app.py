"""The HTTP interface: chat completions, models, metrics, and a page that shows the state of the server."""

import asyncio
import contextlib
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, Response

from ..finetune.text import cut, one_line
from .administration import Administration, administration_routes
from .answers import Streamed, Told, whole
from .body_limit import BodyLimit
from .entrance import Entrance
from .errors import ApiError
from .limits import BODY_SECONDS, MOST_BYTES, Limits
from .metrics import Metrics
from .prompts import Prompts
from .replies import model_list, model_object
from .requests import ChatRequest
from .scheduler import Scheduler

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def make_app(
    scheduler: Scheduler,
    prompts: Prompts,
    tokenizer,
    limits: Limits,
    metrics: Metrics,
    administration: Administration | None = None,
) -> FastAPI:
    """The application; its scheduler starts and stops with it."""

    @contextlib.asynccontextmanager
    async def lifespan(_):
        scheduler.start()
        yield
        await run_in_threadpool(scheduler.stop)

    app = FastAPI(title="pypeft-fast serve", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False  # a redirect would name the host that the client names
    app.state.ending = ending = asyncio.Event()  # a signal sets it
    app.add_middleware(BodyLimit, most=MOST_BYTES, seconds=BODY_SECONDS, ending=ending)
    app.include_router(administration_routes(scheduler, prompts, administration))
    adapters = scheduler.adapters
    entrance = Entrance(scheduler, prompts, tokenizer, limits)

    @app.post("/v1/chat/completions")
    async def complete(body: ChatRequest, request: Request) -> Response:
        told = Told()
        generation = await entrance.enter(body, told.tell)
        if body.stream:
            return Streamed(scheduler, generation, told, body.with_usage)
        return await whole(request, scheduler, generation, told)

    @app.get("/v1/models")
    async def models() -> dict:
        return model_list(adapters)

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        return model_object(adapters.find(name), adapters.base)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=PROMETHEUS)

    @app.get("/health")
    async def health() -> dict:
        if not scheduler.is_alive:
            raise ApiError(503, "the thread of the model has ended")
        return {"status": "ok"}

    @app.get("/status")
    async def status() -> dict:
        return {
            "base": adapters.base.name,
            "adapters": [{"name": its.name, "requests": its.users} for its in adapters.all()],
            "running": scheduler.running,
            "waiting": scheduler.waiting,
            "tokens_a_second": round(metrics.rate.now(), 1),
        }

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})

    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(Exception, _of_server)
    return app


async def _answer(_, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, headers=error.headers())


async def _invalid(_, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    field = cut(one_line(".".join(str(part) for part in first["loc"][1:])))
    if first["type"] == "json_invalid":
        return await _answer(_, ApiError(400, f"the body is not JSON: {first['ctx']['error']}"))
    if not field and first["type"] == "model_attributes_type":
        what = "the body is not a JSON object with the header Content-Type: application/json"
        return await _answer(_, ApiError(400, what))
    found = first["msg"].removeprefix("Value error, ")  # pydantic's own words before those of a ValueError
    return await _answer(_, ApiError(400, f"{field or 'the body'}: {found}", param=field or None))


async def _of_http(_, error: HTTPException) -> JSONResponse:
    answer = ApiError(error.status_code, str(error.detail))
    return JSONResponse(answer.body(), answer.status, headers=error.headers)


async def _of_server(_, error: Exception) -> JSONResponse:
    """Starlette calls this for an error of the server itself, and writes the error to the log."""
    return await _answer(_, ApiError(500, "the server has made an error; its log says more"))
