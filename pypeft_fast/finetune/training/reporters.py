"""Programs to which Trainer reports the losses during a run."""

import importlib.util

from ..errors import UserError

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
    """UserError if a package is missing. Imports nothing."""
    for name in names or ():
        if importlib.util.find_spec(REPORTERS[name]) is None:
            package = REPORTERS[name]
            raise UserError(f"`report_to` {name} needs {package}, not installed here; run: pip install {package}")


def check_of_many(names: list[str] | None) -> None:
    """UserError if one of these cannot report several adapters of one run."""
    if wrong := next((name for name in names or () if name not in OF_MANY), None):
        raise UserError(
            f"`report_to` {wrong} has one run in a process, and several adapters train here; take {', '.join(OF_MANY)}"
        )
