"""What PEFT has written, made reproducible: names as of the plain model, floating numbers, sets in order."""

import json

import torch
from safetensors.torch import load_file, save_file

from .layout import CONFIG, WEIGHTS
from .tensors import plain_names


def tidy(folder, config) -> None:
    """Rewrites the config, and the weights only if a name or a dtype has to change."""
    _tidy_config(folder / CONFIG, config)
    header = _header(folder / WEIGHTS)
    names = plain_names(header)
    # float8 holds no adapter that anything would load: float32 has the same values.
    if all(old == new for old, new in names.items()) and not any(d.startswith("F8") for d in header.values()):
        return
    tensors = {names[key]: _loadable(tensor) for key, tensor in load_file(folder / WEIGHTS).items()}
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def own_names(model, state_dict: dict) -> dict:
    """A state dict of the model, as accelerate, DistributedDataParallel or torch.compile hand it out, by the model's
    own names."""
    if not any(key.startswith("module.") or "_orig_mod." in key for key in state_dict):
        return state_dict
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    own = dict(zip(plain_names(name for name, _ in named).values(), (name for name, _ in named), strict=True))
    return {own.get(name, name): state_dict[key] for key, name in plain_names(state_dict).items()}


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


def _header(path) -> dict[str, str]:
    """{name: dtype} of a safetensors file, without its data."""
    with open(path, "rb") as file:
        entries = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {key: entry["dtype"] for key, entry in entries.items() if key != "__metadata__"}


def _loadable(tensor):
    return tensor.to(torch.float32) if str(tensor.dtype).startswith("torch.float8") else tensor
