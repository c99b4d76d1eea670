"""An adapter's two files as they lie in a folder, read without PyTorch: whether they are whole, and what they hold."""

import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .. import json_text
from ..errors import UserError
from ..text import one_line

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def fault(folder: Path) -> str | None:
    """What is wrong with an adapter's files, None if nothing is."""
    value, trouble = object_in(folder / CONFIG)
    if trouble:
        return trouble
    if not isinstance(value.get("peft_type"), str):
        return f"{CONFIG} has no peft_type"
    return fault_of_weights(folder / WEIGHTS)


def fault_of_weights(path: Path) -> str | None:
    """What is wrong with a safetensors file, None if nothing is."""
    if trouble := unreadable(path):
        return trouble
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        return f"{path.name} is cut short or overwritten ({one_line(str(error))})"
    return None if names else f"{path.name} holds no tensor"


def check_files(folder: Path) -> None:
    """UserError unless an adapter's files are there and whole: PEFT looks on the hub for what a folder lacks."""
    trouble = fault_of_weights(folder / WEIGHTS)
    if (folder / CONFIG).exists():
        json_text.read_object(folder / CONFIG, f"`adapter` {folder} cannot be loaded: {CONFIG}")
    elif not any(folder.glob(f"{CONFIG}*")):  # one being saved has a longer name, and PeftModel knows it
        trouble = f"{CONFIG} is missing"
    if trouble:
        raise UserError(f"`adapter` {folder} cannot be loaded: {trouble}; give a folder that finetune or PEFT wrote")


@dataclass(frozen=True)
class Adapter:
    config: dict  # of adapter_config.json
    shapes: dict[str, list[int]]  # of every tensor
    dtypes: list[str]
    bytes: int  # of the file of the tensors

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. UserError if its files are not whole."""
    if trouble := fault(folder):
        raise UserError(f"{folder} holds no whole adapter: {trouble}; give a folder that finetune or PEFT wrote")
    with safe_open(folder / WEIGHTS, framework="np") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}
        shapes = {name: its.get_shape() for name, its in slices.items()}
        dtypes = sorted({its.get_dtype() for its in slices.values()})
    config = json_text.read_object(folder / CONFIG, str(folder / CONFIG))
    return Adapter(config, shapes, dtypes, (folder / WEIGHTS).stat().st_size)


def by_kind(adapters: dict[str, Path]) -> dict[str | None, dict[str, Path]]:
    """{peft_type: those of the adapters that are of it}: PEFT loads adapters of one kind on one model. None stands for
    a config that cannot be read, which loading will say."""
    groups: dict[str | None, dict[str, Path]] = {}
    for name, folder in adapters.items():
        kind = object_in(folder / CONFIG)[0].get("peft_type")
        groups.setdefault(kind if isinstance(kind, str) else None, {})[name] = folder
    return groups


def object_in(path: Path) -> tuple[dict, str | None]:
    """(the JSON object in a file, what is wrong with the file or None)."""
    if trouble := unreadable(path):
        return {}, trouble
    try:
        return json_text.read_object(path, path.name), None
    except UserError as error:
        return {}, str(error)


def unreadable(path: Path) -> str | None:
    """Why a file cannot be read, or that it is empty; None if it can."""
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with open(path, "rb") as file:
            return None if file.read(1) else f"{path.name} is empty"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
