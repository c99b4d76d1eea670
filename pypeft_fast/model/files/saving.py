"""Saving so that a crash, a full disk or another saver leaves whole adapters: see layout.py for the protocol."""

import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from .layout import CONFIG, SCRATCH, WEIGHTS, pending_name, pending_names
from .locks import hold, is_abandoned, locked
from .rewriting import tidy


class NotAFolder(NotADirectoryError, ValueError):
    """A file lies where the folder would be. A ValueError too, as in PEFT."""


@contextlib.contextmanager
def saving(folder, configs: dict):
    """A scratch folder to write adapters into, which are put in place at the end of the block; nothing stays of it.

    configs: {folder within: PEFT's config of the adapter that is written there}.

    Raises OSError that names the folder if the disk is full, a rename fails, or anything else is in the way; ValueError
    if a link lies where an adapter's folder would be.
    """
    folder = Path(folder)
    if folder.is_file():
        raise NotAFolder(f"{folder} should be a directory, not a file; give a folder to save the adapter in")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _scratch(folder) as scratch:
            yield scratch
            for within, config in configs.items():
                if (scratch / within / CONFIG).is_file() and (scratch / within / WEIGHTS).is_file():
                    tidy(scratch / within, config)
            _put_in_place(scratch, folder, configs)
    except (OSError, SafetensorError) as error:
        if isinstance(error, NotAFolder):
            raise
        message = f"{folder}: the adapter could not be saved: {error}"
        raise (OSError(error.errno, message) if getattr(error, "errno", None) else OSError(message)) from error


@contextlib.contextmanager
def _scratch(folder):
    """A folder of this saver's own inside `folder`, gone afterwards. What killed savers left there is removed first."""
    with locked(folder):
        for name in os.listdir(folder):
            if name.startswith(SCRATCH) and is_abandoned(folder / name):
                shutil.rmtree(folder / name, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder))
        held = hold(scratch)
    try:
        card = folder / "README.md"  # PEFT updates the one that is there
        if card.is_file() and not card.is_symlink():
            shutil.copyfile(card, scratch / card.name)
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(held)


def _put_in_place(scratch, folder, configs):
    for within in configs:
        source, target = scratch / within, folder / within
        if not (source / CONFIG).is_file() or not (source / WEIGHTS).is_file():
            continue
        _make(folder, within)
        with locked(target):
            _put_pair(source, target)
    for path in sorted(scratch.rglob("*")):  # the card, and whatever else was written
        if path.is_file():
            relative = path.relative_to(scratch)
            _make(folder, relative.parent)
            os.replace(path, folder / relative)


def _make(folder, within):
    """The folder within, made if need be. Whoever shares the folder must not lead elsewhere by a link in it."""
    path = folder
    for part in Path(within).parts:
        path = path / part
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link, which saving does not follow; remove it, or save elsewhere")
        path.mkdir(exist_ok=True)


def _put_pair(source, target):
    """Both files of an adapter, as one: the caller holds the lock of target."""
    for name in (CONFIG, WEIGHTS):
        if (target / name).is_dir() and not (target / name).is_symlink():
            raise IsADirectoryError(f"{target / name} is a folder where a file is to be written; remove it")
    (source / WEIGHTS).chmod(stat.S_IMODE((source / CONFIG).stat().st_mode))  # safetensors may make it private
    for name in (CONFIG, WEIGHTS):
        sync(source / name)
    _finish_earlier_save(target)
    weights = os.open(source / WEIGHTS, os.O_RDONLY)
    try:
        pending = target / pending_name(_content(target / CONFIG), weights)
    finally:
        os.close(weights)
    os.replace(source / CONFIG, pending)
    try:
        sync(target)  # else a power cut could bring the weights to the disk without their config
        os.replace(source / WEIGHTS, target / WEIGHTS)
    except OSError:
        pending.unlink()
        raise
    os.replace(pending, target / CONFIG)
    for stale in pending_names(target):
        (target / stale).unlink(missing_ok=True)
    sync(target)


def _finish_earlier_save(target):
    """A pending config in force is of a save that has taken effect: it gets its name."""
    names = pending_names(target)
    if not names or not (target / WEIGHTS).is_file():
        return
    weights = os.open(target / WEIGHTS, os.O_RDONLY)
    try:
        name = pending_name(_content(target / CONFIG), weights)
    finally:
        os.close(weights)
    if name in names:
        os.replace(target / name, target / CONFIG)


def _content(path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def sync(path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
