"""`pypeft-fast serve`: an HTTP server with the OpenAI interface for a base model and its adapters."""

import os
from pathlib import Path

from ..finetune.base_models import SMOLLM2, load_base
from ..finetune.errors import UserError, need
from .adapter_option import check_arguments, check_one_kind, import_libraries
from .common import add_adapters, add_loading, add_model
from .option_values import count, port, positive_int, text
from .terminal import say

SUMMARY = "answer over HTTP, with a base model and many adapters, by the OpenAI interface"
EXAMPLE = "pypeft-fast serve --model smollm2 --adapter desk=lines/desk --adapter billing=lines/billing"
TOKEN = "PYPEFT_FAST_TOKEN"
SHORTEST_TOKEN = 16
ADVICE = f"""\
POST /v1/chat/completions, streaming or not; the field "model" names an adapter, or the base model by its own name. The
requests of all adapters are decoded in one batch. GET /v1/models lists the names, /metrics is for Prometheus, and the
page / shows the adapters, the queue and the tokens a second.

With --adapter-folder, adapters are added, replaced and removed while the server runs: PUT /v1/models/NAME with
{{"folder": "NAME OF A FOLDER IN IT"}}, and DELETE /v1/models/NAME, with the header "Authorization: Bearer TOKEN". The
environment variable {TOKEN} holds the token, such as that of: export {TOKEN}=$(openssl rand -hex 16)

SIGTERM and Ctrl-C end the server: the open requests have --grace seconds to finish."""


def add_arguments(parser) -> None:
    add = parser.add_argument
    add_model(parser)
    add_adapters(parser)
    add(
        "--host",
        default="127.0.0.1",
        help="the address; anyone who can reach it can ask (default: %(default)s)",
    )
    add("--port", type=port, metavar="N", default=8000, help="0: a free port (default: %(default)s)")
    add("--max-batch", type=positive_int, metavar="N", default=64, help="rows decoded at once (default: %(default)s)")
    add(
        "--max-queue", type=positive_int, metavar="N", default=256, help="requests that may wait (default: %(default)s)"
    )
    add(
        "--max-length",
        type=positive_int,
        metavar="N",
        help="tokens of a prompt with its answer (default: those that the model reads, at most 4096)",
    )
    add(
        "--cache-tokens",
        type=positive_int,
        metavar="N",
        default=65536,
        help="tokens of which keys and values are kept at once, which bounds the memory (default: %(default)s)",
    )
    add("--max-adapters", type=positive_int, metavar="N", default=64, help="adapters at once (default: %(default)s)")
    add(
        "--adapter-folder",
        type=text,
        metavar="DIR",
        help="allow adding and removing adapters over HTTP, from this folder alone",
    )
    add("--grace", type=count, metavar="SECONDS", default=30, help="of open requests at the end (default: %(default)s)")
    add_loading(parser)


def run(arguments) -> None:
    need("fastapi", "uvicorn", "prometheus_client", extra="serve")
    adapters = check_arguments(arguments)
    check_one_kind(adapters)
    folder, token = _administration(arguments)
    import_libraries(arguments, adapters)

    from ..serve.administration import Administration
    from ..serve.limits import Limits, context_of
    from ..serve.server import Server, build, listen

    with listen(arguments.host, arguments.port) as listening:  # a taken port is told before the model is loaded
        model, tokenizer = load_base(arguments.model, arguments.dtype, arguments.quantize)
        limits = Limits(
            rows=arguments.max_batch,
            queue=arguments.max_queue,
            context=context_of(model, arguments.max_length),
            cells=arguments.cache_tokens,
            adapters=arguments.max_adapters,
        )
        allowed = None if folder is None else Administration(folder, token)
        name = _name(arguments.model)
        served = build(model, tokenizer, name, adapters, limits, allowed)
        host, its_port = listening.getsockname()[:2]
        url = f"http://[{host}]:{its_port}" if ":" in host else f"http://{host}:{its_port}"
        say(f"{url}/v1 serves {', '.join([name, *adapters])}; {url}/ shows its state; Ctrl-C ends it")
        if folder is not None:
            say(f"adapters in {folder} can be added over HTTP with the token of {TOKEN}")
        Server(served, arguments.grace).run(sockets=[listening])


def _administration(arguments) -> tuple[Path | None, str]:
    """The folder and the token of changes over HTTP; no folder if these are not asked for."""
    if arguments.adapter_folder is None:
        return None, ""
    folder, token = Path(arguments.adapter_folder), os.environ.get(TOKEN, "")
    if not folder.is_dir():
        raise UserError(f"`adapter_folder` {folder}: no such folder")
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"`adapter_folder` needs a token for changes over HTTP, of at least {SHORTEST_TOKEN} printable ASCII "
            f"characters without a space, in the environment: export {TOKEN}=$(openssl rand -hex 16)"
        )
    return folder, token


def _name(model: str) -> str:
    """What requests call the base model: smollm2, its name on the Hub, or the name of its folder."""
    path = Path(model)
    return path.resolve().name if model != SMOLLM2 and path.is_dir() else model
