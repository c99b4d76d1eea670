"""Adding, replacing and removing adapters over HTTP: PUT and DELETE /v1/models/NAME, with a token."""

import asyncio
import hmac
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ..finetune.errors import UserError
from .errors import ApiError, refused
from .names import folder_within
from .prompts import Prompts
from .replies import model_object
from .requests import AdapterRequest
from .scheduler import Scheduler


@dataclass(frozen=True)
class Administration:
    """folder: the only folder from which adapters are loaded over HTTP. token: what a change requires."""

    folder: Path
    token: str


def administration_routes(scheduler: Scheduler, prompts: Prompts, allowed: Administration | None) -> APIRouter:
    """The routes; without `allowed` each of them answers 403."""

    def authorised(request: Request) -> None:
        if allowed is None:
            raise ApiError(403, "this server's adapters cannot be changed; start it with --adapter-folder to allow it")
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {allowed.token}".encode()):
            raise ApiError(401, "a change needs the server's token: Authorization: Bearer TOKEN", code="invalid_token")

    class Authorised(APIRoute):
        """Checks the token before the body is read; a dependency would be checked after it."""

        def get_route_handler(self):
            handler = super().get_route_handler()

            async def checked(request: Request):
                authorised(request)
                return await handler(request)

            return checked

    routes = APIRouter(route_class=Authorised)

    @routes.put("/v1/models/{name:path}")
    async def put(name: str, body: AdapterRequest | None = None) -> JSONResponse:
        scheduler.adapters.check_new(name)
        load, find = scheduler.adapters.load, scheduler.adapters.find
        folder = folder_within(allowed.folder, name if body is None or body.folder is None else body.folder)
        try:
            await run_in_threadpool(prompts.check_template, folder)
            # Both on one thread: before this coroutine goes on, the adapter may have been deleted.
            replaced, adapter = await asyncio.wrap_future(scheduler.call(lambda: (load(name, folder), find(name))))
        except UserError as error:
            raise refused(error, param="folder") from error
        made = model_object(adapter, scheduler.adapters.base)
        return JSONResponse(made, 200 if replaced else 201)

    @routes.delete("/v1/models/{name:path}")
    async def delete(name: str) -> dict:
        scheduler.remove(name)
        return {"id": name, "object": "model", "deleted": True}

    return routes
