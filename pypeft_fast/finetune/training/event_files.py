"""The files that a run writes for TensorBoard, in OUTPUT/runs: their names and their removal."""

import re
from pathlib import Path

from ..errors import as_user_error

FOLDER = "runs"  # in the output folder, as Trainer has it
SUFFIX = ".finetune"  # ends the names of event files that finetune writes
NAME = re.compile(rf".*\.tfevents\..+{re.escape(SUFFIX)}")


def remove(output: Path) -> None:
    """Deletes the event files that earlier runs wrote into this output folder, and folders that are then empty.

    Other files stay, also event files of other programs. UserError if a file cannot be deleted.
    """
    runs = output / FOLDER
    if runs.is_symlink() or not runs.is_dir():
        return
    with as_user_error(f"an event file in {runs} cannot be deleted", (OSError,)):
        for folder in [path for path in runs.iterdir() if path.is_dir() and not path.is_symlink()]:
            own = [path for path in folder.iterdir() if NAME.fullmatch(path.name) and not path.is_dir()]
            for path in own:
                path.unlink()
            if own and not any(folder.iterdir()):
                folder.rmdir()
        if not any(runs.iterdir()):
            runs.rmdir()
