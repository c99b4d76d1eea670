"""Names: of adapters, which become folders and parts of parameters' names, and of the tensors in a file."""

import os

from torch import nn

BASE = "__base__"  # PEFT's word for "no adapter" among the rows of a batch


def check_adapter_name(name) -> None:
    """ValueError (TypeError for anything but a str) unless an adapter may be called so.

    The name is a folder's, inside the one that is saved to: no separators. It is an entry of nn.ModuleDict and
    nn.ParameterDict: no dots, and no attribute of these, such as "training" or "keys".
    """
    if not isinstance(name, str):
        raise TypeError(f"adapter_name={name!r} is a {type(name).__name__}; give a str, such as 'default'")
    bad = next((part for part in (".", "/", os.sep, "\0") if part in name), None)
    if not name or name == BASE:
        why = "cannot be an adapter's name"
    elif bad:
        why = f"contains {bad!r}, but becomes a folder's name and a part of parameters' names"
    elif hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        why = "is an attribute of torch's own containers, which would be overwritten"
    elif any("\ud800" <= letter <= "\udfff" for letter in name):
        why = "holds a lone surrogate, which no folder's name can"
    else:
        return
    raise ValueError(f"adapter_name={name!r} {why}; take another, such as 'default'")


def plain(key: str) -> str:
    """The name without what torch.compile puts around a module."""
    return key.replace("_orig_mod.", "")


def plain_names(keys) -> dict[str, str]:
    """{name: the name without torch.compile's and DistributedDataParallel's parts}."""
    names = {key: plain(key) for key in keys}
    if names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names
