"""Trainer's reporters, with files in the output folder that --overwrite can tell from those of other programs."""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from ..errors import as_user_error
from .event_files import FOLDER, SUFFIX


def reporting(names: Sequence[str]) -> tuple[list[str], list[TrainerCallback]]:
    """(the names that Trainer itself has to report to, callbacks for the others) of names of REPORTERS."""
    own = {"tensorboard": Events, "wandb": Wandb}
    return [name for name in names if name not in own], [own[name]() for name in names if name in own]


class Events(TensorBoardCallback):
    """Trainer's reporter to TensorBoard; the names of its files end in SUFFIX.

    The folder is that of the variable TENSORBOARD_LOGGING_DIR, or one of this process in OUTPUT/runs.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if self.tb_writer is None:
            from torch.utils.tensorboard import SummaryWriter

            started = time.strftime("%Y-%m-%d_%H-%M-%S")
            usual = Path(args.output_dir, FOLDER, f"{started}_{socket.gethostname()}_{os.getpid()}")
            folder = os.path.expanduser(os.environ.get("TENSORBOARD_LOGGING_DIR") or usual)
            with as_user_error(f"event files cannot be written to {folder}", (OSError,)):
                self.tb_writer = SummaryWriter(folder, filename_suffix=SUFFIX)
        super().on_train_begin(args, state, control, **kwargs)


class Wandb(WandbCallback):
    """Trainer's reporter to Weights & Biases. The run's files are in OUTPUT/wandb, or in WANDB_DIR if it is set; the
    run ends with the training, so that the next one in this process is another."""

    _is_own = False  # whether this object has started the run

    def setup(self, args, state, model, **kwargs):
        import wandb

        self._is_own = wandb.run is None
        what = "`report_to` wandb: W&B did not start the run; set WANDB_MODE=offline to report to files only"
        with as_user_error(what, (wandb.Error, OSError)):
            if self._is_own:
                project = os.environ.get("WANDB_PROJECT", "huggingface")  # Trainer's default
                folder = os.environ.get("WANDB_DIR") or args.output_dir
                wandb.init(project=project, name=args.run_name, dir=folder)
            super().setup(args, state, model, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        super().on_train_end(args, state, control, **kwargs)
        if self._is_own:
            import wandb

            wandb.finish()
