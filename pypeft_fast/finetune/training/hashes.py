"""Hashes of what a run reads, by which `resume` notices that a file has changed under the same name."""

import hashlib
import json
from pathlib import Path

from .. import json_text
from ..adapters.files import CONFIG, WEIGHTS
from ..chat_template import read_template
from ..data.records import Example
from ..errors import UserError, as_user_error
from .settings import Settings

KEY = "sha256"  # in finetune.json
# {field of Settings that names what a run reads: what differs if the hash does}
DIFFERS = {
    "data": "other examples",
    "eval_data": "other examples",
    "chat_template": "another text",
    "adapter": "another config or other weights",
}
BLOCK = 2**20  # bytes read at once


def hashes_of(settings: Settings, examples: list[Example], held_out: list[Example] | None) -> dict[str, str]:
    """{field of Settings: SHA-256} of what the field names, for the fields in DIFFERS that are given.

    Of data: the messages of all examples in their order, not the bytes of the file. Of an adapter: the values of its
    config and the bytes of its weights.
    UserError if a file cannot be read.
    """
    found = {"data": _of_examples(examples)}
    if held_out is not None:
        found["eval_data"] = _of_examples(held_out)
    if settings.chat_template is not None:
        found["chat_template"] = hashlib.sha256(read_template(settings.chat_template).encode()).hexdigest()
    if settings.adapter is not None:
        with as_user_error(f"`adapter` {settings.adapter} cannot be read", (OSError,)):
            found["adapter"] = _of_adapter(Path(settings.adapter))
    return found


def check_hashes(saved: dict[str, str], now: dict[str, str], settings: dict, adapter: str | None = None) -> None:
    """UserError for the first field whose hash is not the saved one, if one is saved. settings: {field of Settings: its
    value}. adapter: the name of one among several, for the message.
    """
    of_adapter = f" of {adapter}" if adapter else ""
    for name, value in now.items():
        if saved.get(name, value) != value:
            raise UserError(
                f"`resume`: `{name}`{of_adapter}, {settings[name]}, has {DIFFERS[name]} than in the run to go on with; "
                "put the old content back, or start again with `overwrite`"
            )


def _of_examples(examples: list[Example]) -> str:
    found = hashlib.sha256()
    for example in examples:
        found.update(json.dumps([[m["role"], m["content"]] for m in example.messages]).encode() + b"\n")
    return found.hexdigest()


def _of_adapter(folder: Path) -> str:
    config = json_text.read_object(folder / CONFIG, str(folder / CONFIG))
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode() + b"\n")
    with open(folder / WEIGHTS, "rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()
