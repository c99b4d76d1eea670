"""Checkpoints of a run of several adapters: output/checkpoint-STEP holds the state of all of them at one step.

An adapter that has ended before is not in the checkpoint: its folder is complete. A checkpoint appears in the folder
only when it is whole.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from .. import json_text
from ..errors import UserError, as_user_error
from ..whole_files import new_folder, write_json
from . import checkpoints
from .checkpoints import MANY_NUMBERS, MANY_TENSORS
from .damage import of_saved

KEPT = 2  # the newest, and one more in case the newest is damaged
KEYS = {"before": dict, "adapters": dict, "ended": list}  # of MANY_NUMBERS, with their types


@dataclass(frozen=True)
class Saved:
    """A whole checkpoint: before: {name: held-out loss before training} of all adapters; numbers and tensors of each
    adapter that had not ended, as `Course` gives them; the names of those that had; states of random generators."""

    path: Path
    step: int
    before: dict[str, float | None]
    ended: list[str]
    numbers: dict[str, dict]
    tensors: dict[str, dict]
    generators: dict


def write(output: Path, step: int, courses, before: dict[str, float | None]) -> None:
    """Writes the checkpoint of this step, then deletes older ones but KEPT. UserError if the disk is full, .."""
    import torch

    target = output / f"checkpoint-{step}"
    on_gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    running = {course.name: course for course in courses}
    numbers = {
        "before": before,
        "ended": [name for name in before if name not in running],
        "adapters": {name: course.numbers() for name, course in running.items()},
    }
    tensors = {
        "adapters": {name: course.tensors() for name, course in running.items()},
        "generators": {"cpu": torch.get_rng_state(), "cuda": on_gpu},
    }
    with as_user_error(f"{target} cannot be written", (OSError, RuntimeError)):
        if target.exists():
            shutil.rmtree(target)  # a damaged one, from before the one that the run has gone on from
        with new_folder(target) as scratch:
            write_json(scratch / MANY_NUMBERS, numbers)
            torch.save(tensors, scratch / MANY_TENSORS)
    with as_user_error(f"an older checkpoint in {output} cannot be deleted", (OSError,)):
        checkpoints.keep_newest(output, step, KEPT)


def newest(output: Path, names, is_complete) -> tuple[Saved | None, list[str]]:
    """(the newest checkpoint from which a run of these adapters can go on, or None; the fault of each newer one).

    is_complete(name): whether the folder of an adapter that has ended is whole.
    """
    damaged = []
    for path in checkpoints.checkpoints(output):
        try:
            return _read(path, list(names), is_complete), damaged
        except UserError as error:
            damaged.append(f"{path.name} is damaged ({error})")
    return None, damaged


def _read(path: Path, names: list[str], is_complete) -> Saved:
    """UserError: what is wrong with the checkpoint."""
    import torch
    from transformers import TrainerState
    from transformers.trainer_pt_utils import safe_globals

    numbers = json_text.read_object(path / MANY_NUMBERS, MANY_NUMBERS)
    if wrong := next((key for key, kind in KEYS.items() if not isinstance(numbers.get(key), kind)), None):
        raise UserError(f"{MANY_NUMBERS} has no {wrong}")
    ended, running = numbers["ended"], numbers["adapters"]
    if sorted([*ended, *running]) != sorted(names) or sorted(numbers["before"]) != sorted(names):
        raise UserError(f"{MANY_NUMBERS} is of other adapters")
    if lacking := next((name for name in ended if not is_complete(name)), None):
        raise UserError(f"the folder of {lacking}, which had ended, is not whole")
    if trouble := of_saved(path / MANY_TENSORS, ("adapters", "generators")):
        raise UserError(trouble)
    with safe_globals():
        tensors = torch.load(path / MANY_TENSORS, map_location="cpu", weights_only=True)
    if tensors["adapters"].keys() != running.keys():
        raise UserError(f"{MANY_TENSORS} is of other adapters")
    with as_user_error(f"{MANY_NUMBERS} is not of this version", (TypeError, AttributeError, KeyError)):
        for its in running.values():
            TrainerState(**its["state"])
    return Saved(
        path,
        checkpoints.step_of(path),
        numbers["before"],
        ended,
        running,
        tensors["adapters"],
        tensors["generators"],
    )


def restore_generators(generators: dict) -> None:
    """The states of PyTorch's random generators, from which dropout draws."""
    import torch

    torch.set_rng_state(generators["cpu"])
    if generators["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(generators["cuda"])
