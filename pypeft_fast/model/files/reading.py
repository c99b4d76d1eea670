"""Finds an adapter's config and weights, locally or on the hub, and opens both as a pair of the same save.

A save writes both files completely under other names, then renames the weights, then the config. The first rename
commits the save. Before the first rename the old pair is untouched. Between the two renames a reader takes the config
from the pending file, whose name is a fingerprint of the old config and the new weights, the folder's contents at that
moment. If PEFT or another program writes either file, the fingerprint no longer matches, and the pending file is
ignored.
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
_HEADER = 100_000_000  # bytes, the longest header that safetensors reads
_SAMPLE = 1024  # bytes of every tensor that the fingerprint reads


class NoAdapter(FileNotFoundError, ValueError):
    """The folder or a file of the adapter does not exist. Also a ValueError, as in PEFT."""


class Pair(NamedTuple):
    """An adapter's two files.

    config_path, weights_path: for messages. config: the file's bytes, or None without the file. weights: the open
    file's descriptor. identity: of the weights when the pair was opened.
    """

    config_path: str
    weights_path: str
    config: bytes | None
    weights: int
    identity: tuple

    @property
    def pinned(self) -> str:
        """A path that opens this weights file, even if the folder has been saved to since."""
        return f"/dev/fd/{self.weights}"

    def check_unwritten(self) -> None:
        """ValueError if the weights file has been written to since the pair was opened."""
        if _identity(self.weights) != self.identity:
            raise ValueError(
                f"{self.weights_path} was written to while it was read; load the adapter again when no program writes "
                "to this file"
            )


def pending_name(config: bytes | None, weights: int) -> str:
    """The name of the pending config that is valid while the folder has this config and these weights, a descriptor.

    The fingerprint of the weights covers the header and the first _SAMPLE bytes of every tensor, since two saves differ
    there, and hashing a whole large file would take longer than writing it.
    """
    digest = hashlib.sha256(hashlib.sha256(config or b"").digest())
    length = min(int.from_bytes(os.pread(weights, 8, 0), "little"), _HEADER)
    header = os.pread(weights, length, 8)
    digest.update(os.fstat(weights).st_size.to_bytes(8, "little") + header)
    for offsets in re.finditer(rb'"data_offsets"\s*:\s*\[\s*(\d{1,18})', header):
        digest.update(os.pread(weights, _SAMPLE, 8 + length + int(offsets[1])))
    return f"{CONFIG}.{digest.hexdigest()[:32]}.new"


def folder_of(model_id, where: dict) -> str:
    """The adapter's folder: model_id itself, or a snapshot in the hub's cache, downloaded if it is not there.

    As in PEFT, if the folder has none of an adapter's files, model_id is read as a hub id. NoAdapter if neither the
    folder nor the hub has the adapter.
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
    except HFValidationError:  # model_id is not a valid hub id; `opened` then names the missing file
        return path
    except (OSError, ValueError) as error:  # an error of the hub, or offline and not in the cache
        there = "this folder has no adapter" if os.path.isdir(path) else "there is no such folder"
        raise NoAdapter(
            f"Can't find '{CONFIG}' and {WEIGHTS} at '{path}': {there}, and neither the hub nor its cache has them "
            f"({(str(error) or type(error).__name__).splitlines()[0]}); give an adapter's folder or a hub id"
        ) from error


@contextlib.contextmanager
def opened(folder, needs_config=True):
    """The Pair of the folder, open during the block.

    NoAdapter: a file is missing. PermissionError: a file cannot be read. ValueError: a file is not a regular file.
    RuntimeError: the folder was saved to during each of TRIES attempts.
    """
    for attempt in range(TRIES):
        with contextlib.ExitStack() as stack:
            pair = _attempt(os.fspath(folder), needs_config, stack)
            if pair is not None:
                yield pair
                return
        time.sleep(0.001 * attempt)
    raise RuntimeError(
        f"{folder} was saved to during each of {TRIES} attempts to read a config and weights of the same save; load "
        "the adapter when no process saves to that folder"
    )


def _attempt(folder, needs_config, stack) -> Pair | None:
    """Opens both files, then checks that the folder still has the same files; None if a save replaced one of them."""
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
        holds = f"{PICKLE} is a pickle and is never read; if you trust it, load it with peft and save it again"
    if weights is None:
        raise NoAdapter(f"{folder} has no {WEIGHTS}: {holds}")
    if text is None and needs_config:
        raise NoAdapter(f"Can't find '{CONFIG}' at '{folder}': {holds}; give an adapter's folder")
    return Pair(*paths, text, weights, before[1])


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
    """A descriptor of the file, which the stack closes; None if there is no such file."""
    try:
        with _permitted(path):
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # without O_NONBLOCK, opening a pipe can block
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
        raise PermissionError(f"{path} cannot be read: permission denied; ask the owner for access") from None


def _text(descriptor) -> bytes | None:
    return None if descriptor is None else os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _identity(descriptor):
    """A value that changes if the path has another file or the file was written to."""
    found = None if descriptor is None else os.fstat(descriptor)
    return found and (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
