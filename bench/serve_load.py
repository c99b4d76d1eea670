"""python -m bench.serve_load ADAPTERS: 64 clients at once, for five minutes, of a server in a process of its own.

ADAPTERS is the folder that examples/support_desk.py has written, such as out/support_desk: adapters that each say their
own name, and in data/ the questions to which they say it. Each client asks one adapter after the other, chosen at
random; a part of the answers is streamed, and some clients disconnect in the middle. No answer may name another adapter
than the one that was asked, or differ from the adapter's answer to the same question alone. The resident memory of the
server must not grow after the first third of the time.
Ends with exit code 1 if an answer was wrong, a request failed, or the memory grew. Writes serve_load.json and
serve_load.md.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx

from .harness import report
from .harness.targets import at_most
from .harness.timing import machine

LONG = "Hi! Before we begin, please tell me in one sentence which desk of the company I have reached, and who you are."
TOKENS = 24
GROWTH = 1.05  # the most that the memory at the end may be of its largest value in the first third
HEADER = ("what", "value")


def folders_in(folder: Path) -> dict[str, Path]:
    """{name: folder} of the adapters in a folder. SystemExit if there are fewer than two."""
    found = {path.parent.name: path.parent for path in sorted(folder.glob("*/adapter_config.json"))}
    if len(found) < 2:
        sys.exit(f"bench.serve_load: {folder} holds {len(found)} adapters; give a folder of two or more")
    return found


def questions_in(folder: Path) -> list[str]:
    """The questions of the training, and a longer one. SystemExit if there are none."""
    lines = [line for path in sorted((folder / "data").glob("*.jsonl")) for line in path.read_text().splitlines()]
    if not lines:
        sys.exit(f"bench.serve_load: {folder} has no data/*.jsonl; give the folder that examples/support_desk.py wrote")
    return [*dict.fromkeys(json.loads(line)["prompt"] for line in lines), LONG]


def start(model: str, adapters: dict[str, Path], options: list[str]):
    """(process, URL) of a server."""
    named = [part for name, folder in adapters.items() for part in ("--adapter", f"{name}={folder}")]
    command = [sys.executable, "-m", "pypeft_fast", "serve", "--model", model, "--port", "0", *named, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not (found := re.search(r"(http://\S+)/v1 serves", line)):
        sys.exit(f"bench.serve_load: the server has not started: {line}")
    return process, found[1]


def resident(process) -> int:
    """The bytes of memory of a process that are resident."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])


async def ask(client: httpx.AsyncClient, name: str, question: str, stream=False, leave_after: int | None = None) -> str:
    """The answer; with `leave_after` the client disconnects after so many pieces."""
    body = {"model": name, "messages": [{"role": "user", "content": question}]}
    body |= {"max_tokens": TOKENS, "temperature": 0, "stream": stream}
    if not stream:
        answer = await client.post("/v1/chat/completions", json=body)
        return answer.raise_for_status().json()["choices"][0]["message"]["content"]
    text, pieces = "", 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line in ("", "data: [DONE]"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            text, pieces = text + chunk["choices"][0]["delta"].get("content", ""), pieces + 1
            if pieces == leave_after:
                break
    return text


async def client_of(url: str, number: int, expected: dict, end: float, count: Counter, wrong: list) -> None:
    """One client: asks until the end, and counts its answers."""
    draw = random.Random(number)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        while time.monotonic() < end:
            (name, question), answer = draw.choice(list(expected.items()))
            leave_after = draw.choice([None] * 15 + [3])
            try:
                found = await ask(client, name, question, draw.random() < 0.5 or leave_after is not None, leave_after)
            except (httpx.HTTPError, RuntimeError) as error:
                count["failed"] += 1
                wrong.append(f"{name}: {type(error).__name__} {error}")
                continue
            if leave_after is not None:
                count["left"] += 1
                continue
            count["answers"] += 1
            if found != answer:
                count["wrong"] += 1
                wrong.append(f"{name} said {found!r}, not {answer!r}")


async def load(url, process, names, questions, clients, seconds):
    """(counts, what was wrong, [resident bytes, once a second])"""
    count, wrong, memory = Counter(), [], []
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        expected = {(name, q): await ask(client, name, q) for name in names for q in questions}
    misnamed = [f"{name}: {text!r}" for (name, _), text in expected.items() if _other(name, names, text)]
    if misnamed:
        sys.exit(f"an adapter does not say its own name, even alone: {misnamed[0]}; train it longer")
    end = time.monotonic() + seconds
    running = [asyncio.ensure_future(client_of(url, i, expected, end, count, wrong)) for i in range(clients)]
    while not all(task.done() for task in running):
        memory.append(resident(process))
        await asyncio.sleep(1)
    await asyncio.gather(*running)
    return count, wrong, memory


def _other(name: str, names, text: str) -> bool:
    """Whether a text names another adapter, or does not name its own."""
    return name not in text or any(other in text for other in names if other != name and other not in name)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.serve_load", description=__doc__.splitlines()[0])
    parser.add_argument("adapters", type=Path, metavar="ADAPTERS", help="a folder of adapters that say their names")
    parser.add_argument("--model", default="smollm2", help="smollm2 or a folder (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=300.0, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    parser.add_argument("--serve", default="", help="further options of pypeft-fast serve, such as '--dtype bfloat16'")
    options = parser.parse_args(arguments)
    adapters, questions = folders_in(options.adapters), questions_in(options.adapters)
    about = machine() | {"clients": options.clients, "seconds": options.seconds}
    print(report.headline(about), flush=True)
    process, url = start(options.model, adapters, options.serve.split())
    try:
        count, wrong, memory = asyncio.run(
            load(url, process, list(adapters), questions, options.clients, options.seconds)
        )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    first = max(memory[: max(1, len(memory) // 3)])
    targets = [
        at_most("answers of a wrong adapter", count["wrong"], 0),
        at_most("requests that failed", count["failed"], 0),
        at_most("memory at the end over the most in the first third", memory[-1] / first, GROWTH),
    ]
    megabytes = " ".join(f"{m / 1e6:.0f}" for m in (memory[0], max(memory), memory[-1]))
    rows = [
        ("answers", count["answers"]),
        ("clients that left in the middle", count["left"]),
        ("answers a second", f"{count['answers'] / options.seconds:.1f}"),
        ("resident memory, MB: first, most, last", megabytes),
    ]
    print(*wrong[:10], *(f"{what}: {value}" for what, value in rows), report.verdicts(targets), sep="\n")
    data = {"machine": about, "counts": dict(count), "wrong": wrong[:100], "memory": memory, "targets": targets}
    report.write(options.output, "serve_load", data, [(report.TARGET_HEADER, targets), (HEADER, rows)])
    if any(target[-1] != "pass" for target in targets) or not count["answers"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
