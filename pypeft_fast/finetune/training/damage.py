"""Finds damage in a checkpoint after a killed process or a power failure. Each function returns the fault, or None.

Every file is checked to its end: a file of torch.save is a zip archive with one checksum per entry, JSON must parse,
and the header of a safetensors file gives the file's length.
"""

import pickle
import zipfile
from pathlib import Path

from ..adapters.files import fault, object_in, unreadable
from ..text import one_line

STATE = "trainer_state.json"
# {file that torch.save writes into a checkpoint: the keys that resuming reads}
SAVED = {
    "optimizer.pt": ("state", "param_groups"),
    "scheduler.pt": ("last_epoch",),
    "rng_state.pth": ("python", "numpy", "cpu"),
}
# The errors of zipfile, and of torch.load with weights_only, for a file of another format.
ZIP_ERRORS = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError)
LOAD_ERRORS = (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, RuntimeError)


def of_checkpoint(folder: Path) -> str | None:
    """Why a run cannot resume from this checkpoint, or None."""
    saved = (of_saved(folder / name, keys) for name, keys in SAVED.items())
    return of_state(folder / STATE) or next(filter(None, saved), None) or fault(folder)


def of_state(path: Path) -> str | None:
    """The fault of Trainer's state file, which must have the steps done, the total steps and the losses; or None."""
    from transformers import TrainerState

    value, trouble = object_in(path)
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
    """The fault of a file of torch.save, which must hold a dict with these keys and load with weights_only; or None."""
    import torch
    from transformers.trainer_pt_utils import safe_globals

    if trouble := unreadable(path):
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
