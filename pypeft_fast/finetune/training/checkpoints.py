"""The checkpoints of a run: from which checkpoint a run can resume, and which checkpoints a run may delete."""

import hashlib
import re
import shutil
from pathlib import Path

from ..adapters.files import CONFIG, WEIGHTS
from ..errors import as_user_error
from . import damage

MANY_NUMBERS, MANY_TENSORS = "adapters.json", "adapters.pt"  # the files in a checkpoint of several adapters
# The files that Trainer and PEFT write into a checkpoint, and the scratch files that a killed save leaves.
SCRATCH = ".saving-"
OWN_FILES = re.compile(
    rf"\.?({CONFIG}|{WEIGHTS})(\..+)?|{damage.STATE}|optimizer\.pt|scheduler\.pt|scaler\.pt"
    r"|rng_state(_\d+)?\.pth|training_args\.bin|README\.md"
    rf"|{MANY_NUMBERS}|{MANY_TENSORS}"
)


def step_of(folder: Path) -> int | None:
    """The step in the name of a folder checkpoint-STEP; None for any other name, for symbolic links and for files."""
    step = re.fullmatch(r"checkpoint-([0-9]{1,18})", folder.name)
    return int(step[1]) if step and folder.is_dir() and not folder.is_symlink() else None


def checkpoints(output: Path) -> list[Path]:
    """The folders checkpoint-STEP in the output folder, the highest step first."""
    return sorted((p for p in output.glob("checkpoint-*") if step_of(p) is not None), key=step_of, reverse=True)


def foreign_file(checkpoint: Path) -> str | None:
    """The name of a file or folder in this folder that no run writes; None if there is none."""
    for path in sorted(checkpoint.iterdir()):
        own = path.is_file() and OWN_FILES.fullmatch(path.name)
        scratch = path.is_dir() and path.name.startswith(SCRATCH)
        if path.is_symlink() or not (own or (scratch and foreign_file(path) is None)):
            return path.name
    return None


def remove(output: Path) -> dict[str, str]:
    """Deletes the checkpoints in the output folder that contain only files that a run writes.

    Returns {name: reason} of the other files and folders named checkpoint-*, which are not deleted. UserError if a
    checkpoint cannot be deleted.
    """
    left = {}
    for path in sorted(output.glob("checkpoint-*")):
        with as_user_error(f"{path} cannot be deleted", (OSError,)):
            if step_of(path) is None:
                left[path.name] = "not a folder checkpoint-STEP"
            elif name := foreign_file(path):
                left[path.name] = f"it holds {name}, which no run writes"
            else:
                shutil.rmtree(path)
    return left


def discard(checkpoint: Path) -> None:
    """Deletes an incomplete checkpoint if it contains only files that a run writes."""
    if checkpoint.is_dir() and foreign_file(checkpoint) is None:
        shutil.rmtree(checkpoint, ignore_errors=True)


def keep_newest(output: Path, step: int, count: int, also: Path | None = None) -> None:
    """Deletes the older checkpoints of a run at this step; keeps the newest `count`, and `also` if given.

    Only checkpoints that contain no foreign file are counted and deleted.
    """
    reached = [p for p in checkpoints(output) if step_of(p) <= step]
    for path in [p for p in reached if foreign_file(p) is None][count:]:
        if also is None or path.name != also.name:
            shutil.rmtree(path)


def newest_whole(output: Path, earlier: dict[str, str]) -> tuple[Path | None, list[str]]:
    """(the newest checkpoint from which a run can resume, or None; the fault of each newer checkpoint).

    earlier: {name: fingerprint} of checkpoints of an earlier run, which are skipped.
    """
    damaged = []
    for path in checkpoints(output):
        if path.name in earlier and earlier[path.name] == fingerprint(path):
            continue
        trouble = damage.of_checkpoint(path)
        if trouble is None:
            return path, damaged
        damaged.append(f"{path.name} is damaged ({trouble})")
    return None, damaged


def fingerprint(checkpoint: Path) -> str:
    """A hash of the checkpoint's state file, which every run writes itself; "" without a state file."""
    state = checkpoint / damage.STATE
    return hashlib.sha256(state.read_bytes()).hexdigest() if state.is_file() else ""
