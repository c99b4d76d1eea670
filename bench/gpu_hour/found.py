"""What a step's own process tells: its numbers, written whole after each of them, or why it has nothing to do."""

import json
import os
import sys
import tempfile
from pathlib import Path

SKIPPED = 77  # the exit status of a step that has nothing to do here
PATH = "GPU_HOUR_FOUND"  # the environment variable that names the step's file


def write_whole(path, text):
    """The file has the old text or the new one, whenever the process is stopped."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def keep(**found):
    """What was found up to now; `line` is its sentence in the table of steps."""
    path = os.environ.get(PATH)
    if path is None:  # a step that is run by hand
        print(json.dumps(found, indent=1))
    else:
        write_whole(Path(path), json.dumps(found) + "\n")


def skip(reason):
    keep(skipped=reason)
    print(reason)
    sys.exit(SKIPPED)
