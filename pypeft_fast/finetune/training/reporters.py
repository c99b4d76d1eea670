"""Programs to which Trainer reports the losses during a run."""

import contextlib
import importlib.util
import os
import sys

from ..errors import UserError
from ..text import one_line

# {Trainer's name: the module that it needs, which has this name on PyPI too}
REPORTERS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "trackio": "trackio",
    "swanlab": "swanlab",
    "comet_ml": "comet_ml",
}
OF_MANY = ("tensorboard",)  # the others have one run in a process


def check_reporters(names: list[str] | None) -> None:
    """UserError if a package is missing or turned off, or if W&B needs a login. Imports none of them but wandb."""
    for name in names or ():
        if importlib.util.find_spec(REPORTERS[name]) is None:
            package = REPORTERS[name]
            raise UserError(f"`report_to` {name} needs {package}, not installed here; run: pip install {package}")
    if "wandb" in (names or ()):
        _check_wandb()


def _check_wandb() -> None:
    """UserError if wandb is turned off, or would report online and has no API key."""
    given = "`report_to` wandb"
    if os.environ.get("WANDB_DISABLED", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError(f"{given} does not go with WANDB_DISABLED; unset this variable, or leave `report_to` out")
    import wandb

    if wandb.setup().settings.mode in ("offline", "dryrun", "disabled"):
        return
    with _no_terminal():
        try:
            wandb.login()
        except wandb.Error as error:
            remedy = "run: wandb login, or set WANDB_MODE=offline to report to files only"
            raise UserError(f"{given}: no login to W&B: {one_line(str(error))}; {remedy}") from error


@contextlib.contextmanager
def _no_terminal():
    """In the block the standard input is no terminal, so that wandb raises an error where it would ask for a key."""
    real = sys.stdin
    with open(os.devnull) as sys.stdin:
        try:
            yield
        finally:
            sys.stdin = real


def check_of_many(names: list[str] | None) -> None:
    """UserError if one of these cannot report several adapters of one run."""
    if wrong := next((name for name in names or () if name not in OF_MANY), None):
        raise UserError(
            f"`report_to` {wrong} has one run in a process, and several adapters train here; take {', '.join(OF_MANY)}"
        )
