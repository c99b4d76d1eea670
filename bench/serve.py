"""python -m bench.serve: tokens a second of a server, 8 clients on 8 adapters over 8 clients on one adapter.

SmolLM2-135M with LoRA r=16 on every linear layer. In a round each client sends one request over HTTP, and each answer
has the same number of tokens. First each client's answer is compared with its adapter's answer to a request alone. One
thread: CPU time of the process, which holds the server and the clients; several threads: wall time. Writes serve.json
and serve.md.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import torch

import pypeft_fast as pf
from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.calm import calm_libraries
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.serve.limits import Limits
from pypeft_fast.serve.server import Server, build, listen

from .harness import report
from .harness.causal_lm import randomize_adapters
from .harness.targets import at_least
from .harness.timing import clock_of, interleaved, machine

CLIENTS = 8
QUESTION = "Tell me about the sea."
HEADER = ("8 clients on", "tokens a second", "ms a token of all clients")
TARGET = 0.85


def save_adapters(model: str, folder: Path) -> dict[str, Path]:
    """{name: folder} of random adapters."""
    torch.manual_seed(0)
    config = pf.LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    names = [f"line{i}" for i in range(CLIENTS)]
    made = pf.get_peft_model(load_base(model)[0], config, names[0])
    for name in names[1:]:
        made.add_adapter(name, config)
    randomize_adapters(made)
    made.save_pretrained(folder)
    return {name: folder / name for name in names}


@contextlib.contextmanager
def running(served):
    """The URL of a server in a thread."""
    with listen("127.0.0.1", 0) as listening:
        server = Server(served, grace=0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield "http://{}:{}".format(*listening.getsockname())
        finally:
            server.handle_exit(15, None)
            thread.join()


async def ask(client: httpx.AsyncClient, adapter: str, tokens: int) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": adapter, "messages": messages, "max_tokens": tokens, "temperature": 0}
    answer = await client.post("/v1/chat/completions", json=body)
    reply = answer.raise_for_status().json()
    if reply["usage"]["completion_tokens"] != tokens:
        raise RuntimeError(f"{reply['usage']['completion_tokens']} tokens, not {tokens}")
    return reply["choices"][0]["message"]["content"]


async def ask_all(url: str, adapters: list[str], tokens: int) -> list[str]:
    """One request to each of these adapters at once; the answers."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        return await asyncio.gather(*(ask(client, adapter, tokens) for adapter in adapters))


def check(url: str, names: list[str], tokens: int) -> None:
    """SystemExit if an answer among others differs from the adapter's answer alone, or if two adapters answer alike."""
    alone = [asyncio.run(ask_all(url, [name], tokens))[0] for name in names]
    together = asyncio.run(ask_all(url, names, tokens))
    wrong = [name for name, a, b in zip(names, alone, together, strict=True) if a != b]
    if wrong:
        sys.exit(f"{', '.join(wrong)}: another answer beside other adapters than alone: no speed is reported")
    if len(set(alone)) < len(names):
        sys.exit("two adapters answer alike, so the check cannot detect a wrong adapter: no speed is reported")


def measure(url: str, names: list[str], tokens: int, seconds: float, threads: int) -> dict[str, float]:
    """{"one adapter", "8 adapters": seconds of a round}"""
    steps = {
        "one adapter": lambda: asyncio.run(ask_all(url, names[:1] * CLIENTS, tokens)),
        f"{CLIENTS} adapters": lambda: asyncio.run(ask_all(url, names, tokens)),
    }
    return interleaved(steps, clock_of(threads), seconds)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.serve", description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="smollm2 or a folder (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=120.0, help="of timing (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads; above 1, wall time is measured")
    parser.add_argument("--output", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    calm_libraries()
    about = machine() | {"threads": options.threads}
    print(report.headline(about), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            adapters = save_adapters(options.model, Path(folder))
            served = build(*load_base(options.model), "base", adapters, Limits())
        except UserError as error:
            sys.exit(f"bench.serve: {error}")
        served.scheduler.ends = frozenset()  # each answer has all tokens
        with running(served) as url:
            check(url, list(adapters), options.tokens)
            times = measure(url, list(adapters), options.tokens, options.seconds, options.threads)
    count = CLIENTS * options.tokens
    rows = [(name, f"{count / t:.1f}", f"{1e3 * t / options.tokens:.1f}") for name, t in times.items()]
    one, several = times.values()
    targets = [at_least("tokens a second, 8 clients on 8 adapters over 8 on one", one / several, TARGET)]
    line = report.aligned(HEADER, times)
    print(line(HEADER), *map(line, rows), report.verdicts(targets), sep="\n")
    data = {"machine": about, "tokens": options.tokens, "results": times, "targets": targets}
    report.write(options.output, "serve", data, [(report.TARGET_HEADER, targets), (HEADER, rows)])


if __name__ == "__main__":
    main()
