"""A pair of files that belong together, held open: whatever a saver does meanwhile, these are the ones."""

import contextlib
import os
import stat
import time
from dataclasses import dataclass

from .layout import CONFIG, PICKLE, WEIGHTS, pending_name, pending_names, read_all

TRIES = 50


class NoAdapter(FileNotFoundError, ValueError):
    """There is no such folder or file. A ValueError too, as in PEFT."""


@dataclass
class Pair:
    """The config's text (None if there is none and none is needed), and a descriptor of the weights."""

    folder: str
    config: bytes | None
    weights: int

    @property
    def config_path(self) -> str:
        return os.path.join(self.folder, CONFIG)

    @property
    def weights_path(self) -> str:
        return os.path.join(self.folder, WEIGHTS)

    @property
    def pinned(self) -> str:
        """A path that opens the same weights, even if the folder has others by now."""
        return f"{'/proc/self/fd' if os.path.isdir('/proc/self/fd') else '/dev/fd'}/{self.weights}"


@contextlib.contextmanager
def opened(folder, needs_config=True):
    """A Pair of the folder. NoAdapter if a file is missing, PermissionError, ValueError if it is no regular file,
    RuntimeError if the folder changes without end."""
    folder = os.fspath(folder)
    for attempt in range(TRIES):
        with contextlib.ExitStack() as stack:
            pair = _attempt(folder, needs_config, stack)
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
    config_path, weights_path = os.path.join(folder, CONFIG), os.path.join(folder, WEIGHTS)
    _check_folder(folder)
    config = _open(config_path, stack)
    weights = _open(weights_path, stack)
    before = _identity(config), _identity(weights)
    names = pending_names(folder)
    text = None if config is None else read_all(config)
    if weights is not None and names:
        name = pending_name(text, weights)
        pending = _open(os.path.join(folder, name), stack) if name in names else None
        if name in names and pending is None:
            return None
        text = text if pending is None else read_all(pending)
    if before != (_identity(_open(config_path, stack)), _identity(_open(weights_path, stack))):
        return None
    if before != (_identity(config), _identity(weights)):  # written in place
        return None
    if weights is None:
        what = _contents(folder)
        if os.path.isfile(os.path.join(folder, PICKLE)):
            what = (
                f"{PICKLE} is a pickle, which is never read: where it is trusted, load it with peft and save it again"
            )
        raise NoAdapter(f"{folder} has no {WEIGHTS}; {what}")
    if text is None and needs_config:
        raise NoAdapter(f"Can't find '{CONFIG}' at '{folder}': {_contents(folder)}; give an adapter's folder")
    return Pair(folder, text, weights)


def _check_folder(folder):
    try:
        found = os.stat(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise NoAdapter(
            f"Can't find '{CONFIG}' at '{folder}': there is no such folder; give an adapter's folder"
        ) from None
    except PermissionError:
        raise PermissionError(f"{folder} cannot be read: permission denied; ask its owner for access") from None
    if not stat.S_ISDIR(found.st_mode):
        raise NoAdapter(f"Can't find '{CONFIG}' at '{folder}': that is a file; give the adapter's folder")


def _open(path, stack) -> int | None:
    """A descriptor that the stack closes, or None if there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would wait for its writer
    except FileNotFoundError:
        return None
    except PermissionError:
        raise PermissionError(f"{path} cannot be read: permission denied; ask its owner for access") from None
    stack.callback(os.close, descriptor)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise ValueError(f"{path} is {kind} where a file is expected; save the adapter again")
    return descriptor


def _identity(descriptor):
    """What is another if the file is, or if it was written since."""
    if descriptor is None:
        return None
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _contents(folder):
    return f"it holds {', '.join(sorted(os.listdir(folder))[:20]) or 'nothing'}"
