"""The adapters in a folder, as PEFT's save_pretrained lays them out."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from .names import check_adapter_name
from .reading import CONFIG, NoAdapter


def adapter_folders(folder: str | os.PathLike, names=None) -> dict[str, Path]:
    """{name: path} of the adapters in a folder: of "default", the folder itself, first, then subfolders by their names.

    names: only these adapters, in this order. Without names, a Trainer's checkpoints are left out.

    NoAdapter: there is none, or none of one of these names. ValueError: the folder and its subfolder "default" both
    hold an adapter, or a subfolder cannot name one. TypeError: folder is no path, or names are no list of texts.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder={folder!r} is a {type(folder).__name__}; give the path that adapters were saved to")
    folder, names = Path(folder), _list_of(names)
    found = {"default": folder} if (folder / CONFIG).is_file() else {}
    if folder.is_dir():
        subfolders = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        inner = {path.name: path for path in subfolders if (path / CONFIG).is_file()}
        if "default" in found.keys() & inner.keys() and (names is None or "default" in names):
            raise ValueError(
                f"{folder} and {inner['default']} both hold an adapter that would be named 'default'; rename the "
                "subfolder, or give `names` without 'default'"
            )
        found |= inner
    if not found:
        raise NoAdapter(
            f"{folder} has no adapter: neither {CONFIG} nor a subfolder with that file; give the folder that several "
            "adapters were saved to"
        )
    if names is None:
        names = [name for name in found if not re.fullmatch(r"checkpoint-\d+", name)]
        if not names:
            raise NoAdapter(
                f"{folder} has no adapter but checkpoints of a training run, {', '.join(found)}; give the folder of "
                "one of them, or `names`"
            )
    if missing := [name for name in names if name not in found]:
        raise NoAdapter(f"names: {folder} has no adapter {missing[0]!r}; it has {', '.join(found)}")
    for name in names:
        _check_name(name, found[name])
    return {name: found[name] for name in names}


def _list_of(names) -> list[str] | None:
    """The names as a list; None: all adapters."""
    if names is None:
        return None
    listed = list(names) if isinstance(names, Iterable) and not isinstance(names, str) else names
    if isinstance(names, str) or listed == []:
        raise ValueError(f"names={listed!r} must be a list of at least one name; leave it out for all adapters")
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise TypeError(f"names={listed!r} must be a list of texts; leave it out for all adapters")
    return listed


def _check_name(name, path):
    try:
        check_adapter_name(name)
    except ValueError as error:
        raise ValueError(f"{path} holds an adapter, but {error}; rename the folder, or give `names`") from error
