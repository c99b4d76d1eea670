"""The options of a run with all defaults resolved, as a config file that repeats the run."""

from collections.abc import Iterable
from pathlib import Path

from ..finetune.errors import need
from ..finetune.training.settings import Settings
from .terminal import say

# Arguments that say what to do with a run, and so are not in its config.
NOT_OF_A_RUN = ("command", "version", "config", "print_config", "resume", "overwrite")
AS_GIVEN = ("data", "eval_data", "product")  # Settings has those of one adapter


def effective_options(arguments, settings: Iterable[Settings]) -> dict:
    """{option: value} of a run; settings: of each of its adapters.

    An option on which the adapters differ has the value that was given for it, None for a default.
    """
    settings, found = list(settings), {}
    for name, value in vars(arguments).items():
        if name in NOT_OF_A_RUN:
            continue
        if name not in AS_GIVEN and hasattr(settings[0], name):
            resolved = [getattr(its, name) for its in settings]
            value = resolved[0] if all(its == resolved[0] for its in resolved) else value
        if name in AS_GIVEN and isinstance(value, list) and len(value) == 1:
            value = value[0]
        found[name] = str(value) if isinstance(value, Path) else value
    return found


def say_config(options: dict) -> None:
    """Prints the options as YAML."""
    need("yaml")
    import yaml

    say(yaml.safe_dump(options, sort_keys=False, width=1000), end="", keep="\n")
