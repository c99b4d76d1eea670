"""Atomic saving: a crash, a full disk or concurrent saves leave a complete adapter. See reading.py for the protocol."""

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

SCRATCH = ".saving-"  # the prefix of a scratch folder's name


class NotAFolder(NotADirectoryError, ValueError):
    """The path of the folder is a file. Also a ValueError, as in PEFT."""


@contextlib.contextmanager
def saving(folder, configs: dict, adapters=()):
    """Yields a scratch folder; at the end of the block the adapters written there are moved into `folder`.

    configs: {subfolder: PEFT's config of the adapter that is written there}. adapters: the names of all adapters of the
    model. The scratch folder is removed, also after an error.

    OSError names the folder if the disk is full, a rename fails, or another error of the file system occurs. ValueError
    if an adapter's folder is a symbolic link.
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
                _order_config(scratch / name / CONFIG, configs[name])
                _normalise_weights(
                    scratch / name / WEIGHTS, [other for other in adapters if other != (name or "default")]
                )
            for name in whole:
                _make(folder, name)
                with locked(folder / name):
                    _put_pair(scratch / name, folder / name)
            for path in sorted(scratch.rglob("*")):  # README.md, and any other file that was written
                if path.is_file():
                    relative = path.relative_to(scratch)
                    _make(folder, relative.parent)
                    os.replace(path, folder / relative)
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(number, f"{folder}: the adapter could not be saved: {error}") from error


def own_names(model, state_dict: dict) -> dict:
    """The state dict with the model's own names; accelerate, DistributedDataParallel and torch.compile add prefixes."""
    if not any(key.startswith("module.") or "_orig_mod." in key for key in state_dict):
        return state_dict
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    own = {plain: name for name, plain in plain_names(name for name, _ in named).items()}
    return {own.get(name, name): state_dict[key] for key, name in plain_names(state_dict).items()}


@contextlib.contextmanager
def locked(folder, waits=True):
    """Holds a lock on the folder during the block; yields whether the lock is held.

    The lock is not held on a file system without locks. Without `waits` it is also not held if another process holds it
    or the folder is a symbolic link. The lock of a killed process is released by the system.
    """
    flags, operation = (0, fcntl.LOCK_EX) if waits else (os.O_NOFOLLOW, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with contextlib.ExitStack() as stack:
        is_held = False
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | flags)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, operation)
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # a forked child may have the descriptor open too
            is_held = True
        yield is_held


@contextlib.contextmanager
def _scratch(folder):
    """A scratch folder inside `folder`, removed after the block. Scratch folders of killed saves are removed first."""
    with contextlib.ExitStack() as stack:
        with locked(folder):
            for path in list(folder.glob(f"{SCRATCH}*")):
                with locked(path, waits=False) as is_abandoned:
                    if is_abandoned:
                        shutil.rmtree(path, ignore_errors=True)
            own = tempfile.TemporaryDirectory(prefix=SCRATCH, dir=folder, ignore_cleanup_errors=True)
            scratch = Path(stack.enter_context(own))
            stack.enter_context(locked(scratch, waits=False))
        card = folder / "README.md"  # PEFT updates an existing README.md
        if card.is_file() and not card.is_symlink():
            shutil.copyfile(card, scratch / card.name)
        yield scratch


def _make(folder, within):
    """Makes the subfolder `within`. ValueError for a symbolic link on the way, which could lead out of `folder`."""
    path = folder
    for part in Path(within).parts:
        path = path / part
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link, which saving does not follow; remove it, or save elsewhere")
        path.mkdir(exist_ok=True)


def _put_pair(source, target):
    """Moves both files of an adapter into target as one commit. The caller holds the lock of target."""
    for path in (target / CONFIG, target / WEIGHTS):
        if path.is_dir() and not path.is_symlink():
            raise IsADirectoryError(errno.EISDIR, f"{path} is a folder where a file is to be written; remove it")
    (source / WEIGHTS).chmod(stat.S_IMODE((source / CONFIG).stat().st_mode))  # safetensors may write mode 600
    sync(source / CONFIG)
    sync(source / WEIGHTS)
    stale = {path for path in target.iterdir() if re.fullmatch(rf"{re.escape(CONFIG)}\.[0-9a-f]{{32}}\.new", path.name)}
    before = (target / CONFIG).read_bytes() if (target / CONFIG).is_file() else None
    with open(source / WEIGHTS, "rb") as weights:
        pending = target / pending_name(before, weights.fileno())
    os.replace(source / CONFIG, pending)
    try:
        sync(target)  # otherwise, after a power failure, the disk may have the new weights without their config
        os.replace(source / WEIGHTS, target / WEIGHTS)
    except OSError:
        if pending not in stale:
            pending.unlink()
        raise
    for path in stale - {pending}:  # pending configs of interrupted saves
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


def _order_config(path, config) -> None:
    """Sorts sets, which PEFT writes in random order, and restores the order of patterns, which PEFT sorts although the
    first pattern that matches is used."""
    values = json.loads(path.read_text())
    for name, value in values.items():
        original = getattr(config, name, None)
        if isinstance(original, (set, frozenset)) and isinstance(value, list):
            values[name] = sorted(value, key=str)
        elif isinstance(original, dict) and isinstance(value, dict):
            order = {str(key): position for position, key in enumerate(original)}
            values[name] = dict(sorted(value.items(), key=lambda item: order.get(item[0], len(order))))
    path.write_text(json.dumps(dict(sorted(values.items())), indent=2) + "\n", encoding="utf-8")


def _normalise_weights(path, others) -> None:
    """Rewrites the weights with the plain model's names, float8 tensors as float32 of the same values, since loading
    rejects float8, and without tensors of other adapters, which PEFT before 0.19 writes too."""
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
