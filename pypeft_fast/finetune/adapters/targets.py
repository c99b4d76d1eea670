"""Checks that the model has every layer that `target_modules` names, and shortens the names."""

import difflib
import re

from ..errors import UserError
from ..text import quoted


def short_names(layers: list[str]) -> list[str]:
    """The last parts of the layers' dotted names, without duplicates."""
    return sorted({name.rpartition(".")[2] for name in layers})


def shortened_targets(targets: set[str], modules: list[str]) -> list[str]:
    """The targets, each by the last part of its name if no other module has the same last part; sorted.

    targets: full names, to which PEFT expands all-linear. modules: the names of all modules of the model.
    """
    by_end: dict[str, set[str]] = {}
    for name in modules:
        by_end.setdefault(name.rpartition(".")[2], set()).add(name)
    ends = {name: name.rpartition(".")[2] for name in targets}
    return sorted({end if by_end[end] <= targets else name for name, end in ends.items()})


def check_targets(target_modules, layers: list[str]) -> None:
    """UserError for a name that no layer has; PEFT would adapt the other layers without a message.

    target_modules: a list of names or of dotted endings of names; any other value is not checked here.
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


def check_expression(target_modules, model) -> None:
    """UserError for a regular expression that matches a module which holds others: no adapter is for such a module.

    target_modules: as an option of a run; a value that is no regular expression is not checked here.
    """
    if not isinstance(target_modules, str) or target_modules == "all-linear":
        return
    for name, module in model.named_modules():
        if re.fullmatch(target_modules, name) and any(True for _ in module.children()):
            what = f"{name}, a module" if name else "the whole model, a module"
            raise UserError(
                f"`target_modules` {quoted(target_modules)} matches {what} that holds others; end the expression in "
                f"names of layers, such as {', '.join(short_names(_inside(module)))}"
            )


def _inside(module) -> list[str]:
    """The names of the layers in a module that have a matrix as their weight."""
    return [name for name, its in module.named_modules() if getattr(getattr(its, "weight", None), "ndim", 0) == 2]
