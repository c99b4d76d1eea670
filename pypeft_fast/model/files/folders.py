"""The adapters in a folder, as PEFT's save_pretrained lays them out."""

import os
from pathlib import Path

from .reading import CONFIG, NoAdapter


def adapter_folders(folder: str | os.PathLike, names=None) -> dict[str, Path]:
    """{name: path} of the adapters in a folder: of "default", the folder itself, first, then subfolders by their names.

    names: only these adapters, in this order. NoAdapter if there is none, or none of one of these names.
    """
    folder = Path(folder)
    found = {"default": folder} if (folder / CONFIG).is_file() else {}
    if folder.is_dir():
        subfolders = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        found |= {path.name: path for path in subfolders if (path / CONFIG).is_file()}
    if not found:
        raise NoAdapter(
            f"{folder} has no adapter: neither {CONFIG} nor a subfolder with that file; give the folder that several "
            "adapters were saved to"
        )
    if names is None:
        return found
    if isinstance(names, str) or not names:
        raise ValueError(f"names={names!r} must be a list of at least one name; leave it out for all adapters")
    if missing := [name for name in names if name not in found]:
        raise NoAdapter(f"names: {folder} has no adapter {missing[0]!r}; it has {', '.join(found)}")
    return {name: found[name] for name in names}
