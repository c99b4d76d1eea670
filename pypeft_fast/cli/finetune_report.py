"""Writes report.html at the end of `pypeft-fast finetune`."""

import contextlib
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from ..finetune.adapters.methods import BY_ROWS
from ..finetune.data.records import Example
from ..finetune.whole_files import write_whole
from .finetune_checks import counted
from .terminal import say

SECONDS = 120  # after which no further question is answered


@dataclass(frozen=True)
class Trained:
    """An adapter after its run: its metrics, its folder, and the examples whose questions are answered."""

    metrics: dict
    folder: Path
    train: list[Example]
    held_out: list[Example]


def write_report(arguments, options: dict, ready, trained: dict[str, Trained], only=None) -> None:
    """Writes the page about these adapters, by name, into --output.

    only(name): a context in which this adapter of ready.model is active; None: there is one adapter.
    """
    from ..finetune.report.answers import answered
    from ..finetune.report.page import Part, page

    output, count = arguments.output, arguments.report_examples
    if count:
        say(f"answering at most {counted(count, 'question')} for report.html, with the base model and with the adapter")
    parts, until = [], time.monotonic() + SECONDS
    for name, its in trained.items():
        asked = its.held_out or its.train
        with only(name) if only else contextlib.nullcontext():
            answers = answered(ready.model, ready.tokenizer, asked, count, until) if count else []
        parts.append(Part(name, its.metrics, answers, not its.held_out))
    write_whole(output / "report.html", page(output.resolve().name, parts, options, uses(trained, options)).encode())


def uses(trained: dict[str, Trained], options: dict) -> list[tuple[str, str]]:
    """[(what for, a command or a program)] for these adapters."""
    from ..finetune.report.card import program

    dense = f"--model {shlex.quote(options['model'])}"
    model = f"{dense} --quantize {options['quantize']}" if options["quantize"] else dense
    folders = [shlex.quote(str(its.folder)) for its in trained.values()]
    adapters = " ".join(f"--adapter {folder}" for folder in folders)
    first = next(iter(trained.values()))
    found = [
        ("talk to it", f"pypeft-fast chat {model} {adapters}"),
        ("its loss on other data", f"pypeft-fast evaluate {model} {adapters} --data FILE"),
    ]
    method = first.metrics["settings"]["method"]
    if method in BY_ROWS:
        found.append(("answer over HTTP, by OpenAI's interface", f"pypeft-fast serve {model} {adapters}"))
    if method not in ("prompt", "prefix", "bottleneck"):
        found.append(("a model of its own", f"pypeft-fast merge {dense} --adapter {folders[0]} --output DIR"))
    found.append(("in Python", program(first.metrics["settings"], first.metrics["base_model"], str(first.folder))))
    repeat = f"pypeft-fast finetune --config {shlex.quote(options['output'] + '/finetune.json')} --output DIR"
    return [*found, ("train it again", repeat)]
