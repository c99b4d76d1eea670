"""Atomic writing of files and folders, also in case of a crash or a power failure."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Replaces the file atomically: the old file stays until the new content is on the disk.

    Of a symbolic link the file to which it leads is replaced. A device or a pipe is written to, and stays.
    Raises UserError that names the file if it cannot be written; no temporary file is left.
    """
    try:
        path = path.resolve() if path.is_symlink() else path
        if path.exists() and not path.is_file():
            path.write_bytes(content)
            return
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with open(scratch, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def write_json(path: Path, value) -> None:
    """Writes a value as JSON, atomically."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def flush_to_disk(folder: Path) -> None:
    """Waits until a folder and the files in it are on the disk. Raises OSError."""
    for path in (*folder.iterdir(), folder):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields a scratch folder, which is renamed to the target at the end of the block, or removed after an error.

    Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        _make_readable(scratch)
        flush_to_disk(scratch)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Gives each file at least the mode of a new file: safetensors writes files that only their owner can read."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        new = Path(scratch) / "new"
        new.touch()
        mode = new.stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | mode)
