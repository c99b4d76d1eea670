"""Reads an adapter's two files without PyTorch: whether they are complete, and their contents."""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .. import json_text
from ..errors import UserError
from ..text import one_line
from .config_values import config_faults

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def fault(folder: Path) -> str | None:
    """The fault of an adapter's files, or None."""
    value, trouble = object_in(folder / CONFIG)
    if trouble:
        return trouble
    if not isinstance(value.get("peft_type"), str):
        return f"{CONFIG} has no peft_type"
    return fault_of_weights(folder / WEIGHTS)


def fault_of_weights(path: Path) -> str | None:
    """The fault of a safetensors file, or None."""
    if trouble := unreadable(path):
        return trouble
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        return f"{path.name} is cut short or overwritten ({one_line(str(error))})"
    return None if names else f"{path.name} holds no tensor"


def check_files(folder: Path) -> None:
    """UserError if a file of the adapter is missing or not complete; PEFT would look for a missing file on the hub."""
    trouble = fault_of_weights(folder / WEIGHTS)
    if (folder / CONFIG).exists() and not (folder / CONFIG).is_file():  # reading a pipe would wait for a writer
        trouble = f"{CONFIG} is no regular file"
    elif (folder / CONFIG).exists():
        json_text.read_object(folder / CONFIG, f"`adapter` {folder} cannot be loaded: {CONFIG}")
    elif not any(folder.glob(f"{CONFIG}*")):  # during a save the config has a longer name, which PeftModel reads
        trouble = f"{CONFIG} is missing"
    if trouble:
        raise UserError(f"`adapter` {folder} cannot be loaded: {trouble}; give a folder that finetune or PEFT wrote")


def check_config(folder: Path) -> None:
    """UserError for a value in the adapter's config that no adapter can have. The files must be whole."""
    if faults := config_faults(object_in(folder / CONFIG)[0]):
        raise UserError(f"{folder} is broken: {'; '.join(faults)}; get the adapter again or train it again")


@dataclass(frozen=True)
class Adapter:
    config: dict  # the contents of adapter_config.json
    shapes: dict[str, list[int]]  # {name of a tensor: its shape}
    dtypes: list[str]
    bytes: int  # the size of the safetensors file

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. UserError if a file is missing or not complete."""
    if trouble := fault(folder):
        raise UserError(f"{folder} holds no whole adapter: {trouble}; give a folder that finetune or PEFT wrote")
    with safe_open(folder / WEIGHTS, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        shapes = {name: its.get_shape() for name, its in slices.items()}
        dtypes = sorted({its.get_dtype() for its in slices.values()})
    config = json_text.read_object(folder / CONFIG, str(folder / CONFIG))
    return Adapter(config, shapes, dtypes, (folder / WEIGHTS).stat().st_size)


def by_kind(adapters: dict[str, Path]) -> dict[str | None, dict[str, Path]]:
    """{peft_type: the adapters of this type}, since PEFT loads adapters of only one type on a model.

    The key None has the adapters whose config cannot be read; loading them raises the error.
    """
    groups: dict[str | None, dict[str, Path]] = {}
    for name, folder in adapters.items():
        kind = object_in(folder / CONFIG)[0].get("peft_type")
        groups.setdefault(kind if isinstance(kind, str) else None, {})[name] = folder
    return groups


def settings_of(folder: Path) -> dict:
    """{setting: value} of the run that wrote the adapter in this folder; empty if its files do not say."""
    settings = object_in(folder / "metrics.json")[0].get("settings")
    return (settings if isinstance(settings, dict) else {}) | object_in(folder / "finetune.json")[0]


def object_in(path: Path) -> tuple[dict, str | None]:
    """(the JSON object in a file, the fault of the file or None)."""
    if trouble := unreadable(path):
        return {}, trouble
    try:
        return json_text.read_object(path, path.name), None
    except UserError as error:
        return {}, str(error)


def unreadable(path: Path) -> str | None:
    """Why a file cannot be read: it is missing, empty, or an error occurs; None if the file can be read."""
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with open(path, "rb") as file:
            return None if file.read(1) else f"{path.name} is empty"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
