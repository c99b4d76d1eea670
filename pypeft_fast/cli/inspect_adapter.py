"""`pypeft-fast inspect`: what an adapter's folder holds, without loading a model."""

import json
from pathlib import Path

from ..finetune.adapters.describe import describe
from ..finetune.errors import UserError
from ..finetune.text import cut
from .terminal import say

SUMMARY = "what an adapter is: method, base, rank, layers, size, losses"
EXAMPLE = "pypeft-fast inspect my-adapter"
ADVICE = """\
It reads the folder's files and nothing else: no model is loaded. The exit code is 2 for an adapter that is broken:
files that are not whole, values that are NaN or infinite, tensors whose rank is not the config's."""


def add_arguments(parser) -> None:
    parser.add_argument("adapter", metavar="DIR", help="the adapter's folder")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments) -> None:
    facts = describe(Path(arguments.adapter))
    if arguments.json:
        say(json.dumps(facts, indent=2), keep="\n")
    else:
        for name, value in facts.items():
            if value is not None and name != "broken":
                text = ", ".join(map(str, value)) if isinstance(value, list) else value
                say(f"{name:<16} {cut(str(text), 500)}")
    if facts["broken"]:
        raise UserError(f"{arguments.adapter} is broken: {'; '.join(facts['broken'])}; get it again or train it again")
