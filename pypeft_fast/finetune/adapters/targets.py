"""The layers that `target_modules` names: each name must be one of this model's."""

import difflib

from ..errors import UserError
from ..text import quoted


def short_names(layers: list[str]) -> list[str]:
    """The last parts of layers' dotted names, each once."""
    return sorted({name.rpartition(".")[2] for name in layers})


def shortened_targets(targets: set[str], modules: list[str]) -> list[str]:
    """The same layers by the last part of their names, where that part names no other module; sorted.

    targets: full names, as PEFT makes them of all-linear; modules: the names of all modules of the model.
    """
    by_end: dict[str, set[str]] = {}
    for name in modules:
        by_end.setdefault(name.rpartition(".")[2], set()).add(name)
    ends = {name: name.rpartition(".")[2] for name in targets}
    return sorted({end if by_end[end] <= targets else name for name, end in ends.items()})


def check_targets(target_modules, layers: list[str]) -> None:
    """UserError for a name in a list that no layer has, since PEFT adapts the others and says nothing.

    target_modules: a list of names or of dotted endings of names; anything else is left to PEFT.
    """
    if not isinstance(target_modules, list):
        return
    for target in target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            known = short_names(layers)
            close = difflib.get_close_matches(target, known, n=1)
            guess = f"did you mean {close[0]}? There" if close else "there"
            raise UserError(
                f"`target_modules`: no layer of this model is called {quoted(target)}; {guess} are {', '.join(known)}"
            )
