"""An adapter's two files as a pair of one save, held open; and where they are, on this machine or the hub.

A save brings both files whole under other names, then renames the weights, then the config. The first rename
commits the save: before it the old pair is untouched; after it a reader takes the config from the pending file until
the second rename. The pending file's name holds the fingerprint of the old config and the new weights, the folder's
contents between the two renames: if PEFT or another program writes either file, the pending file is invalid.
"""

import contextlib
import hashlib
import inspect
import os
import re
import stat
import time
from typing import NamedTuple

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
TRIES = 50
_HEADER = 100_000_000  # bytes, the most that safetensors reads
_SAMPLE = 1024  # bytes of every tensor


class NoAdapter(FileNotFoundError, ValueError):
    """There is no such folder or file. A ValueError too, as in PEFT."""


class Pair(NamedTuple):
    """Two paths for messages, the config's text or None, and a path of the weights that opens these even if the folder
    has others by now."""

    config_path: str
    weights_path: str
    config: bytes | None
    pinned: str


def pending_name(config: bytes | None, weights: int) -> str:
    """The name of the config that is in force while this config and these weights (a descriptor) lie beside it.

    Of the weights the header and the start of every tensor count: two saves differ in some of them, and reading all of
    a large file would cost more than writing it.
    """
    digest = hashlib.sha256(hashlib.sha256(config or b"").digest())
    length = min(int.from_bytes(os.pread(weights, 8, 0), "little"), _HEADER)
    header = os.pread(weights, length, 8)
    digest.update(os.fstat(weights).st_size.to_bytes(8, "little") + header)
    for offsets in re.finditer(rb'"data_offsets"\s*:\s*\[\s*(\d{1,18})', header):
        digest.update(os.pread(weights, _SAMPLE, 8 + length + int(offsets[1])))
    return f"{CONFIG}.{digest.hexdigest()[:32]}.new"


def folder_of(model_id, where: dict) -> str:
    """The adapter's folder: that one itself, or a snapshot in the hub's cache, downloaded if need be.

    As in PEFT a folder without an adapter's files is taken for a hub's id, if it can be one. NoAdapter: neither has it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    within = where.get("subfolder") or ""
    path = os.path.join(os.fspath(model_id), within) if within else os.fspath(model_id)
    with contextlib.suppress(NoAdapter):
        if any(name.startswith((CONFIG, WEIGHTS, PICKLE)) for name in _listed(path)):
            return path
    options = {k: v for k, v in where.items() if k in inspect.signature(snapshot_download).parameters}
    options["token"] = where.get("token") or where.get("use_auth_token")
    options["allow_patterns"] = [os.path.join(within, name) for name in (CONFIG, WEIGHTS)]
    try:
        folder = os.path.join(snapshot_download(model_id, **options), within)
        _listed(folder)
        return folder
    except HFValidationError:  # it can be no hub id, and opening it says what is missing
        return path
    except (OSError, ValueError) as error:  # the hub's errors, or not cached while offline
        there = "this folder holds no adapter" if os.path.isdir(path) else "there is no such folder"
        raise NoAdapter(
            f"Can't find '{CONFIG}' and {WEIGHTS} at '{path}': {there}, nor are they on the hub or in its cache "
            f"({(str(error) or type(error).__name__).splitlines()[0]}); give an adapter's folder or a hub id"
        ) from error


@contextlib.contextmanager
def opened(folder, needs_config=True):
    """A Pair of the folder. NoAdapter if a file is missing, PermissionError, ValueError if it is no regular file,
    RuntimeError if the folder changes without end."""
    for attempt in range(TRIES):
        with contextlib.ExitStack() as stack:
            pair = _attempt(os.fspath(folder), needs_config, stack)
            if pair is not None:
                yield pair
                return
        time.sleep(0.001 * attempt)
    raise RuntimeError(
        f"{folder} was saved to {TRIES} times while it was being read, so that no config and weights of one save could "
        "be read; load it when nobody saves there"
    )


def _attempt(folder, needs_config, stack) -> Pair | None:
    """Opens both files, then looks whether they are still the folder's; None if a saver was at work in between."""
    names = sorted(_listed(folder))
    paths = [os.path.join(folder, name) for name in (CONFIG, WEIGHTS)]
    config, weights = files = [_open(path, stack) for path in paths]
    before = [_identity(file) for file in files]
    text = _text(config)
    if weights is not None:
        pending = _open(os.path.join(folder, pending_name(text, weights)), stack)
        text = text if pending is None else _text(pending)
    if before != [_identity(_open(path, stack)) for path in paths] or before != [_identity(file) for file in files]:
        return None
    holds = f"it holds {', '.join(names[:20]) or 'nothing'}"
    if weights is None and PICKLE in names:
        holds = f"{PICKLE} is a pickle, which is never read: where it is trusted, load and save it with peft"
    if weights is None:
        raise NoAdapter(f"{folder} has no {WEIGHTS}; {holds}")
    if text is None and needs_config:
        raise NoAdapter(f"Can't find '{CONFIG}' at '{folder}': {holds}; give an adapter's folder")
    return Pair(*paths, text, f"/dev/fd/{weights}")


def _listed(folder) -> list[str]:
    """The names in the folder."""
    try:
        with _permitted(folder):
            return os.listdir(folder)
    except FileNotFoundError:
        what = "there is no such folder"
    except NotADirectoryError:
        what = "that is a file"
    raise NoAdapter(f"Can't find '{CONFIG}' at '{folder}': {what}; give the adapter's folder")


def _open(path, stack) -> int | None:
    """A descriptor that the stack closes, or None if there is no such file."""
    try:
        with _permitted(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    except FileNotFoundError:
        return None
    stack.callback(os.close, descriptor)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise ValueError(f"{path} is {kind} where a file is expected; save the adapter again")
    return descriptor


@contextlib.contextmanager
def _permitted(path):
    try:
        yield
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: permission denied; ask its owner for access") from None


def _text(descriptor) -> bytes | None:
    return None if descriptor is None else os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _identity(descriptor):
    """What is another if the file is, or if it was written since."""
    found = None if descriptor is None else os.fstat(descriptor)
    return found and (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
