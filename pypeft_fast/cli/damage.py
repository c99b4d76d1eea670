"""What is wrong with a file that a kill or a power cut may have damaged, in words; None if nothing is.

Every file is read to its end: torch.save's are zip archives with a checksum an entry, JSON must parse, and a
safetensors file says in its header how long it is.
"""

import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer_pt_utils import safe_globals

from . import json_text
from .errors import UserError
from .terminal import one_line

STATE = "trainer_state.json"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What torch.save wrote into a checkpoint, and the keys that resuming reads.
SAVED = {
    "optimizer.pt": ("state", "param_groups"),
    "scheduler.pt": ("last_epoch",),
    "rng_state.pth": ("python", "numpy", "cpu"),
}
# The errors of zipfile, and of torch.load with weights_only, about a file that is none of theirs.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError)
LOAD_ERRORS = (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, RuntimeError)


def of_checkpoint(folder: Path) -> str | None:
    """What keeps a run from going on from this checkpoint."""
    saved = (of_saved(folder / name, keys) for name, keys in SAVED.items())
    return of_state(folder / STATE) or next(filter(None, saved), None) or of_adapter(folder)


def of_state(path: Path) -> str | None:
    """Of Trainer's state: the steps done and to do, and the loss of each."""
    value, trouble = _json(path)
    if trouble:
        return trouble
    for name in ("global_step", "max_steps"):
        if type(value.get(name)) is not int or value[name] < 1:
            return f"{path.name} has no {name}"
    history = value.get("log_history")
    if not isinstance(history, list) or not any(isinstance(entry, dict) and "loss" in entry for entry in history):
        return f"{path.name} has no losses"
    try:
        TrainerState(**value)
    except (TypeError, AttributeError) as error:
        return f"{path.name} is no state of this version of transformers: {one_line(str(error))}"
    return None


def of_saved(path: Path, keys: tuple[str, ...]) -> str | None:
    """Of a dict that torch.save wrote and Trainer reads with weights_only: it has these keys."""
    if trouble := _unreadable(path):
        return trouble
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except ZIP_ERRORS:
        return f"{path.name} is cut short or overwritten"
    if wrong is not None:
        return f"{path.name} has other bytes than were written"
    try:
        with safe_globals():
            value = torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        return f"{path.name} is not what Trainer writes: {one_line(str(error))[:120]}"
    if not isinstance(value, dict) or any(key not in value for key in keys):
        return f"{path.name} has no {', '.join(keys)}"
    return None


def of_adapter(folder: Path) -> str | None:
    """Of an adapter's two files."""
    value, trouble = _json(folder / CONFIG)
    if trouble:
        return trouble
    if not isinstance(value.get("peft_type"), str):
        return f"{CONFIG} has no peft_type"
    return of_weights(folder / WEIGHTS)


def of_weights(path: Path) -> str | None:
    """Of a safetensors file."""
    if trouble := _unreadable(path):
        return trouble
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        return f"{path.name} is cut short or overwritten ({one_line(str(error))})"
    return None if names else f"{path.name} holds no tensor"


def _json(path: Path) -> tuple[dict, str | None]:
    if trouble := _unreadable(path):
        return {}, trouble
    try:
        return json_text.read_object(path, path.name), None
    except UserError as error:
        return {}, str(error)


def _unreadable(path: Path) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    try:
        with open(path, "rb") as file:
            return None if file.read(1) else f"{path.name} is empty"
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
