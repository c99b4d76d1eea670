"""Saving so that a crash, a full disk or another saver leaves whole adapters: see reading.py for the protocol."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from .names import plain_names
from .reading import CONFIG, WEIGHTS, pending_name

SCRATCH = ".saving-"  # how a saver's own folder begins


class NotAFolder(NotADirectoryError, ValueError):
    """A file lies where the folder would be. A ValueError too, as in PEFT."""


@contextlib.contextmanager
def saving(folder, configs: dict, adapters=()):
    """A scratch folder to write adapters into, which are put in place at the end of the block; nothing stays of it.

    configs: {folder within: PEFT's config of the adapter that is written there}; adapters: all that the model has.

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
            whole = [name for name in configs if all((scratch / name / file).is_file() for file in (CONFIG, WEIGHTS))]
            for name in whole:
                _tidy_config(scratch / name / CONFIG, configs[name])
                _tidy_weights(scratch / name / WEIGHTS, [other for other in adapters if other != (name or "default")])
            for name in whole:
                _make(folder, name)
                with locked(folder / name):
                    _put_pair(scratch / name, folder / name)
            for path in sorted(scratch.rglob("*")):  # the card, and whatever else was written
                if path.is_file():
                    relative = path.relative_to(scratch)
                    _make(folder, relative.parent)
                    os.replace(path, folder / relative)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(number, f"{folder}: the adapter could not be saved: {error}") from error


def own_names(model, state_dict: dict) -> dict:
    """A state dict of the model, as accelerate, DistributedDataParallel or torch.compile hand it out, by the model's
    own names."""
    if not any(key.startswith("module.") or "_orig_mod." in key for key in state_dict):
        return state_dict
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    own = {plain: name for name, plain in plain_names(name for name, _ in named).items()}
    return {own.get(name, name): state_dict[key] for key, name in plain_names(state_dict).items()}


@contextlib.contextmanager
def locked(folder, waits=True):
    """Holds the folder's lock in the block, or until the saver is killed; yields whether it does.

    It does not on a file system without locks and, unless it waits, where another does or the folder is a link.
    """
    flags, operation = (0, fcntl.LOCK_EX) if waits else (os.O_NOFOLLOW, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with contextlib.ExitStack() as stack:
        is_held = False
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | flags)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, operation)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # a forked child may have it open too
            is_held = True
        yield is_held


@contextlib.contextmanager
def _scratch(folder):
    """A folder of this saver's own inside `folder`, gone afterwards. What killed savers left there is removed first."""
    with contextlib.ExitStack() as stack:
        with locked(folder):
            for path in list(folder.glob(f"{SCRATCH}*")):
                with locked(path, waits=False) as is_abandoned:
                    if is_abandoned:
                        shutil.rmtree(path, ignore_errors=True)
            own = tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder, ignore_cleanup_errors=True)
            scratch = Path(stack.enter_context(own))
            stack.enter_context(locked(scratch, waits=False))
        card = folder / "README.md"  # PEFT updates the one that is there
        if card.is_file() and not card.is_symlink():
            shutil.copyfile(card, scratch / card.name)
        yield scratch


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
    for path in (target / CONFIG, target / WEIGHTS):
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(errno.EISDIR, f"{path} is a folder where a file is to be written; remove it")
    (source / WEIGHTS).chmod(stat.S_IMODE((source / CONFIG).stat().st_mode))  # safetensors may make it private
    sync(source / CONFIG)
    sync(source / WEIGHTS)
    stale = {path for path in target.iterdir() if re.fullmatch(rf"{re.escape(CONFIG)}\.[0-9a-f]{{32}}\.new", path.name)}
    before = (target / CONFIG).read_bytes() if (target / CONFIG).is_file() else None
    with open(source / WEIGHTS, "rb") as weights:
        pending = target / pending_name(before, weights.fileno())
    os.replace(source / CONFIG, pending)
    try:
        sync(target)  # else a power cut could bring the weights to the disk without their config
        os.replace(source / WEIGHTS, target / WEIGHTS)
    except OSError:
        if pending not in stale:
            pending.unlink()
        raise
    for path in stale - {pending}:  # of saves that were cut off
        path.unlink(missing_ok=True)
    os.replace(pending, target / CONFIG)
    sync(target)


def sync(path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tidy_config(path, config) -> None:
    """PEFT writes sets in an order of chance, and sorts patterns, of which the first that matches counts."""
    values = json.loads(path.read_text())
    for name, value in values.items():
        original = getattr(config, name, None)
        if isinstance(original, (set, frozenset)) and isinstance(value, list):
            values[name] = sorted(value, key=str)
        elif isinstance(original, dict) and isinstance(value, dict):
            order = {str(key): position for position, key in enumerate(original)}
            values[name] = dict(sorted(value.items(), key=lambda item: order.get(item[0], len(order))))
    path.write_text(json.dumps(dict(sorted(values.items())), indent=2) + "\n", encoding="utf-8")


def _tidy_weights(path, others) -> None:
    """Names as of the plain model; float8, which no reader takes for an adapter, as float32 of the same values; nothing
    of the other adapters, which PEFT before 0.19 writes too."""
    from peft.tuners.tuners_utils import BaseTuner

    with safe_open(path, framework="pt") as file:
        dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys()}
    names = plain_names(dtypes)
    if not hasattr(BaseTuner, "_get_adapter_state_dict"):
        names = {key: name for key, name in names.items() if not {*name.split(".")[-2:]} & {*others}}
    is_float8 = any(dtype.startswith("F8") for dtype in dtypes.values())
    if len(names) == len(dtypes) and all(old == new for old, new in names.items()) and not is_float8:
        return
    tensors = {
        names[key]: tensor.to(torch.float32) if dtypes[key].startswith("F8") else tensor
        for key, tensor in load_file(path).items()
        if key in names
    }
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
