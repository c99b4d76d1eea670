"""Names on the Hugging Face Hub, OWNER/NAME, and the download of their files."""

import re
from pathlib import Path

from .errors import UserError
from .text import cut, one_line


def is_name(text: str) -> bool:
    """Whether a text can be the name of a model or a data set on the Hub: OWNER/NAME."""
    return re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", text) is not None


def download(name: str, kind: str, patterns: list[str], argument: str) -> Path:
    """The folder with the files of a "model" or "dataset" that match the patterns, from the Hub's cache or the Hub.

    If neither has the files, UserError says how to download a folder.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # huggingface_hub also raises errors of its HTTP client, which are OSErrors or RuntimeErrors.
    errors = (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError, RuntimeError)
    try:
        return Path(snapshot_download(name, repo_type=kind, allow_patterns=patterns))
    except errors as error:
        what = "" if kind == "model" else " --repo-type dataset"
        raise UserError(
            f"`{argument}` {name}: there is no such folder here, and the Hugging Face Hub does not give it "
            f"({cut(one_line(str(error)))}); on a machine with a network run: hf download {name}{what} --local-dir "
            f"FOLDER   and give FOLDER"
        ) from error
