"""The layers that --target-modules names: each name must be one of this model's."""

import difflib

from .errors import UserError
from .terminal import quoted


def short_names(layers: list[str]) -> list[str]:
    """The last parts of layers' dotted names, each once."""
    return sorted({name.rpartition(".")[2] for name in layers})


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
            guess = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"--target-modules: no layer of this model is called {quoted(target)}; {guess}There are "
                f"{', '.join(known)}"
            )
