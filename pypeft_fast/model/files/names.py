"""Checks names of adapters, and strips wrappers' prefixes from names of tensors in a file."""

import os

from torch import nn

PREFIX = "base_model.model."  # of the name, in a file and in a PeftModel, of a tensor of the base model
BASE = "__base__"  # in PEFT's adapter_names: this row gets no adapter


def check_adapter_name(name) -> None:
    """ValueError if an adapter cannot have this name; TypeError if the name is not a str.

    The name becomes a folder's name, so it has no path separator. It becomes a key of nn.ModuleDict and
    nn.ParameterDict, so it has no dot and is no attribute of these classes, such as "training" or "keys".
    """
    if not isinstance(name, str):
        raise TypeError(f"adapter_name={name!r} is a {type(name).__name__}; give a str, such as 'default'")
    bad = next((part for part in (".", "/", os.sep, "\0") if part in name), None)
    if not name or name == BASE:
        why = "cannot be an adapter's name"
    elif bad:
        why = f"contains {bad!r}, which a folder's name or a parameter's name cannot contain"
    elif hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        why = "is an attribute of torch.nn.ModuleDict or ParameterDict, which the adapter would overwrite"
    elif any("\ud800" <= letter <= "\udfff" for letter in name):
        why = "has a lone surrogate, which a folder's name cannot have"
    else:
        return
    raise ValueError(f"adapter_name={name!r} {why}; take another, such as 'default'")


def plain(key: str) -> str:
    """The name without the prefix of torch.compile's wrapper."""
    return key.replace("_orig_mod.", "")


def check_distinct(path, names: dict[str, str]) -> None:
    """ValueError, naming the file at `path` and both keys, if two keys of {key in the file: name} have one name."""
    if len(set(names.values())) == len(names):
        return
    first = {}
    for key, name in names.items():
        if name in first:
            raise ValueError(
                f"{path}: {first[name]} and {key} are both for the tensor {name}; remove one of them from the file"
            )
        first[name] = key


def plain_names(keys) -> dict[str, str]:
    """{name: the name without the prefixes of torch.compile's and DistributedDataParallel's wrappers}."""
    names = {key: plain(key) for key in keys}
    if names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names
