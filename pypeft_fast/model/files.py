"""Adapter folders in PEFT's format: adapter_config.json beside adapter_model.safetensors, switched as one.

A save writes both files whole under other names (.new), then renames the weights, then the config. The first rename is
the moment of change: before it the old pair is there untouched, and after it a reader takes the config from its .new
file until the second rename has happened. That file's name holds the hash of what lies in the folder between the two,
the old config and the new weights: as soon as anything else, such as PEFT, has written either, it is out of force.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .config import PeftConfig
from .registry import get_peft_config

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PENDING = f"{CONFIG}.*.new"


def save_config(folder, config) -> None:
    """Writes the config alone, atomically."""
    folder = _make(folder)
    _finish_earlier_save(folder)
    draft = folder / f"{CONFIG}.draft"  # not .new: half written, that name could be taken for the weights' own config
    _write_config(draft, config)
    os.replace(draft, folder / CONFIG)
    _sync(folder)


def save_adapter(folder, config, tensors: dict[str, torch.Tensor]) -> None:
    """Writes both files; a crash at any moment leaves the old pair or the new pair."""
    folder = _make(folder)
    _finish_earlier_save(folder)
    weights = folder / f"{WEIGHTS}.new"
    save_file(_unshared(tensors), weights, metadata={"format": "pt"})
    pending = _pending(folder, weights)
    _write_config(pending, config)
    weights.chmod(pending.stat().st_mode)  # save_file makes it private, whatever the umask
    _sync(weights)
    os.replace(weights, folder / WEIGHTS)
    os.replace(pending, folder / CONFIG)
    for stale in folder.glob(PENDING):
        stale.unlink()
    _sync(folder)


def load_config(folder) -> PeftConfig:
    """The config of an adapter folder.

    Raises FileNotFoundError if there is none, ValueError if it is no JSON object or not a config this version has.
    """
    folder = Path(folder)
    path = _config_path(folder)
    if not path.is_file():
        what = f"it holds {', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}" if folder.is_dir() else ""
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}: {what or 'there is no such folder'}; give an adapter's folder"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"a JSON object is expected, not {type(values).__name__}")
        return get_peft_config(values)
    except (ValueError, TypeError) as error:  # JSON's and UTF-8's errors are ValueErrors
        raise (
            type(error)(f"{path}: {error}")
            if type(error) in (ValueError, TypeError)
            else ValueError(f"{path} is not JSON: {error}")
        ) from error


def load_tensors(folder) -> dict[str, torch.Tensor]:
    """The tensors of an adapter folder, on the CPU.

    Raises FileNotFoundError if there are none, ValueError if the file is truncated or corrupt.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        pickled = path.with_suffix(".bin").name
        hint = f"; {pickled} is a pickle, which is never read" if (path.parent / pickled).is_file() else ""
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}{hint}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}); copy or save the adapter again") from error


def check_tensors(folder, tensors, expected: dict[str, torch.Size], optional: dict[str, torch.Size]) -> None:
    """ValueError unless the file has the expected names and shapes, and beyond them only optional ones.

    The message names the first that does not fit.
    """
    path = Path(folder) / WEIGHTS
    known = optional | expected
    for key in sorted(known):
        if key not in tensors:
            if key not in expected:
                continue
            raise ValueError(f"{path} has no {key}, which the config and this model ask for")
        found = tuple(tensors[key].shape)
        if found != tuple(known[key]):
            raise ValueError(
                f"{path}: {key} has shape {found}, this model and config expect {tuple(known[key])}; is it an "
                "adapter of this base model?"
            )
    unexpected = sorted(set(tensors) - set(known))
    if unexpected:
        raise ValueError(f"{path} has {unexpected[0]}, which this model and config have no place for")


def _make(folder) -> Path:
    folder = Path(folder)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file; give a folder to save the adapter in")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _pending(folder, weights) -> Path:
    """The config that is to replace the folder's, while these weights lie beside it: see the module's docstring."""
    digest = hashlib.sha256()
    for path in (folder / CONFIG, weights):
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return folder / PENDING.replace("*", digest.hexdigest()[:32])


def _config_path(folder) -> Path:
    """The config that belongs to the weights: see the module's docstring."""
    if any(folder.glob(PENDING)):  # else there is no need to hash the weights
        pending = _pending(folder, folder / WEIGHTS)
        if pending.is_file():
            return pending
    return folder / CONFIG


def _finish_earlier_save(folder) -> None:
    """A pending config in force is of a save that has taken effect: it gets its name."""
    path = _config_path(folder)
    if path.name != CONFIG:
        os.replace(path, folder / CONFIG)


def _unshared(tensors) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, each with memory of its own, as safetensors asks."""
    unshared, seen = {}, set()
    for key, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        unshared[key] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return unshared


def _write_config(path, config) -> None:
    values = dict(sorted(config.to_dict().items()))  # not the dicts within: the first pattern that matches counts
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
