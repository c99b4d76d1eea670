"""`pypeft-fast inspect`: describes an adapter's folder, without loading a model."""

import json
from pathlib import Path

from ..finetune.adapters.describe import describe
from ..finetune.errors import UserError
from ..finetune.text import cut
from .common import add_json
from .option_values import text
from .terminal import say

SUMMARY = "describe an adapter: method, base model, rank, layers, size, losses"
EXAMPLE = "pypeft-fast inspect my-adapter"
ADVICE = """\
This command reads only the folder's files and loads no model. The exit code is 2 for a broken adapter: files that are
not complete, values that are NaN or infinite, tensors whose rank differs from the config's."""


def add_arguments(parser) -> None:
    parser.add_argument("adapter", type=text, metavar="DIR", help="the adapter's folder")
    add_json(parser)


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
        raise UserError(
            f"{arguments.adapter} is broken: {'; '.join(facts['broken'])}; get the adapter again or train it again"
        )
