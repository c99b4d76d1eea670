"""The result of a step, written by its process after each measurement, or the reason why the step was skipped."""

import json
import os
import sys
import tempfile
from pathlib import Path

SKIPPED = 77  # the exit status of a step that skips itself
PATH = "GPU_HOUR_FOUND"  # the environment variable that names the step's file


def write_whole(path, text):
    """Replaces the file atomically: a process that is killed leaves the old text or the new text."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def keep(**found):
    """Writes the results so far; `line` is the sentence about them in the table of steps."""
    path = os.environ.get(PATH)
    if path is None:  # the step was started by hand
        print(json.dumps(found, indent=1))
    else:
        write_whole(Path(path), json.dumps(found) + "\n")


def skip(reason):
    keep(skipped=reason)
    print(reason)
    sys.exit(SKIPPED)
