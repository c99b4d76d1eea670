"""Builds a server from a model and its adapters, and runs it until a signal ends it."""

import asyncio
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from ..finetune.errors import UserError, as_user_error
from .adapters import Adapters
from .administration import Administration
from .app import make_app
from .errors import ApiError
from .limits import Limits
from .metrics import Metrics
from .prompts import Prompts
from .scheduler import Scheduler

TOLD = 5.0  # seconds after a second SIGINT in which the open requests are told the end, before they are cut off


@dataclass(frozen=True)
class Served:
    app: FastAPI
    scheduler: Scheduler


def build(
    model,
    tokenizer,
    name: str,
    folders: dict[str, Path],
    limits: Limits,
    administration: Administration | None = None,
) -> Served:
    """An application for a base model, its name, and adapters by name.

    UserError if the model cannot be decoded in rows, or if an adapter cannot be loaded or have its name.
    """
    adapters = Adapters(model, name, limits)
    metrics = Metrics()
    scheduler = Scheduler(adapters, limits, metrics, _ends(model, tokenizer), _pad(tokenizer))
    metrics.watch(scheduler)
    prompts = Prompts(model, tokenizer, limits.context)
    for its_name, folder in folders.items():
        try:
            prompts.check_template(folder)
            adapters.load(its_name, folder)
        except ApiError as error:
            raise UserError(f"`adapter` {its_name}={folder}: {error.message}") from error
    return Served(make_app(scheduler, prompts, tokenizer, limits, metrics, administration), scheduler)


def _ends(model, tokenizer) -> frozenset[int]:
    """The tokens that end an answer: those of generate, or else the tokenizer's end token."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return frozenset(found if isinstance(found, (list, tuple)) else [] if found is None else [found])


def _pad(tokenizer) -> int:
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: a free port. UserError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with as_user_error(f"`host` {host} and `port` {port}: no server can listen there", (OSError,)):
        return socket.create_server((host, port), family=family, backlog=512)


class Server(uvicorn.Server):
    """uvicorn's server. After SIGTERM or SIGINT it takes no new request; the open ones have `grace` seconds to finish,
    then they are told that the server is shutting down. A second SIGINT ends this time."""

    def __init__(self, served: Served, grace: float):
        config = uvicorn.Config(
            served.app,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=int(grace) + 3,
            ws="none",
        )
        super().__init__(config)
        self._scheduler = served.scheduler
        self._ending = served.app.state.ending
        self._grace = grace
        self._failed = False

    async def serve(self, sockets=None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self._failed:
            raise UserError("an error has ended the thread of the model; it is printed above")

    async def on_tick(self, counter: int) -> bool:
        """Whether the server ends: on a signal, and when an error has ended the thread of the model."""
        self._failed = self._failed or self._scheduler.has_failed
        return await super().on_tick(counter) or self._failed

    def handle_exit(self, sig, frame) -> None:
        is_second = self.should_exit and sig == signal.SIGINT
        if not is_second:  # uvicorn's own handler would cut off the open requests at once
            super().handle_exit(sig, frame)
        # A signal may interrupt a thread that holds the scheduler's lock, so the handler itself does not take it.
        self._loop.call_soon_threadsafe(self._end, 0 if is_second else self._grace, is_second)

    def _end(self, grace: float, is_second: bool) -> None:
        self._ending.set()
        self._scheduler.drain(grace)
        if is_second:
            self._loop.call_later(TOLD, setattr, self, "force_exit", True)
