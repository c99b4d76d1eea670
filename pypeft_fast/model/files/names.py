"""The names of adapters: each becomes a folder, a part of parameters' names and a key of modules' dictionaries."""

import os

from torch import nn

BASE = "__base__"  # PEFT's word for "no adapter" among the rows of a batch


def check_adapter_name(name) -> None:
    """ValueError (TypeError for anything but a str) unless an adapter may be called so; nothing is changed.

    The name is a folder's, inside the one that is saved to: no separators. It is an entry of nn.ModuleDict and
    nn.ParameterDict: no dots, and no attribute of these, such as "training" or "keys".
    """
    if not isinstance(name, str):
        raise TypeError(f"adapter_name={name!r} is a {type(name).__name__}; give a str, such as 'default'")
    if not name or name == BASE:
        raise ValueError(f"adapter_name={name!r} cannot be an adapter's name; take another, such as 'default'")
    for part in (".", "/", os.sep, os.altsep or "/", "\0"):
        if part in name:
            raise ValueError(
                f"adapter_name={name!r} contains {part!r}: the name becomes a folder's and a part of parameters' "
                "names; take one without dots and separators"
            )
    if hasattr(nn.ModuleDict(), name) or hasattr(nn.ParameterDict(), name):
        raise ValueError(
            f"adapter_name={name!r} is an attribute of torch's own containers, which would be overwritten; take another"
        )
    try:
        os.fsencode(name).decode()
    except UnicodeError:
        raise ValueError(f"adapter_name={name!r} is no valid text, so no folder's name; take another") from None
