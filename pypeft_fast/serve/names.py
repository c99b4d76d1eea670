"""Names of adapters, and the folder from which requests may load adapters."""

import re
from pathlib import Path

from ..finetune.text import quoted
from .errors import ApiError
from .limits import LONGEST_NAME


def check_name(name: str, what: str = "model") -> None:
    """ApiError unless the name is a plain name: letters, digits, _, - and inner dots, so never a path."""
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name) > LONGEST_NAME or name == "__base__":
        raise ApiError(
            400,
            f"{what} {quoted(name)} is no name; give letters, digits, _, - and ., at most {LONGEST_NAME} characters, "
            "and no path",
            param=what,
        )


def folder_within(root: Path, name: str) -> Path:
    """The folder of this name in `root`. ApiError for a name that is a path, and for a link that leads out of `root`,
    of the folder or of a file in it; 404 if there is no such folder."""
    check_name(name, "folder")
    root, folder = root.resolve(), root / name
    try:
        if not folder.is_dir():
            what = f"folder {quoted(name)}: the server's adapter folder has no such folder"
            raise ApiError(404, what, param="folder")
        outside = [path.name for path in (folder, *folder.iterdir()) if not path.resolve().is_relative_to(root)]
    except (OSError, RuntimeError) as error:  # RuntimeError: a circle of links, in Python before 3.13
        raise ApiError(400, f"folder {quoted(name)} cannot be read: {error}", param="folder") from error
    if outside:
        what = quoted(outside[0])
        raise ApiError(400, f"folder {quoted(name)}: {what} leads out of the adapter folder", param="folder")
    return folder
