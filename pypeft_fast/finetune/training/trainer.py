"""A subclass of transformers.Trainer with a progress bar, the time of each step, and complete checkpoints."""

import math
import time
from pathlib import Path

from safetensors import SafetensorError
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainerState

from ..errors import UserError, as_user_error
from ..held_out import held_out_loss
from ..whole_files import flush_to_disk
from . import checkpoints
from .damage import STATE

KEPT = 2  # the number of checkpoints to keep: the newest, and one more in case the newest is damaged


class TimedTrainer(Trainer):
    """A Trainer with this package's progress bar that records the time of each step."""

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.remove_callback(ProgressCallback)
        self.progress_bar = ProgressBar()
        self.add_callback(self.progress_bar)
        self.add_callback(EndAtDivergence)
        self.add_callback(BestIsHere)
        self.step_times = StepTimes()
        self.add_callback(self.step_times)

    def _save_checkpoint(self, *args, **kwargs):
        """Trainer's _save_checkpoint; then waits until the files are on the disk, and deletes older checkpoints.

        Trainer itself would count and delete every folder checkpoint-NUMBER, also folders that no run wrote. After an
        error, such as a full disk, the incomplete checkpoint is removed.
        """
        output, step = Path(self.args.output_dir), self.state.global_step
        folder = output / f"checkpoint-{step}"
        try:
            with as_user_error(f"{folder} cannot be written", (OSError, RuntimeError, SafetensorError)):
                (folder / STATE).unlink(missing_ok=True)  # the checkpoint is incomplete while its files are replaced
                super()._save_checkpoint(*args, **kwargs)
                flush_to_disk(folder)
        except UserError:
            checkpoints.discard(folder)
            raise
        best = self.state.best_model_checkpoint
        with as_user_error(f"an older checkpoint in {output} cannot be deleted", (OSError,)):
            checkpoints.keep_newest(output, step, KEPT, also=Path(best) if best else None)

    def evaluate(self, *args, metric_key_prefix="eval", **kwargs):
        """The held-out loss as a mean over target tokens; Trainer's own is a mean over batches."""
        loss = held_out_loss(self.model, self.eval_dataset, self.data_collator, self.args.per_device_eval_batch_size)
        check_finite("the loss on held-out data", loss)
        metrics = {f"{metric_key_prefix}_loss": loss}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def load_best(self):
        """Loads the adapter with the lowest held-out loss, if its checkpoint exists."""
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint, *args, **kwargs):
        with _fitting(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with _fitting(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)


def _fitting(checkpoint):
    kinds = (ValueError, TypeError, KeyError, OSError, RuntimeError, SafetensorError)
    return as_user_error(f"{checkpoint} does not fit this run; start again with `overwrite`", kinds)


class ProgressBar(ProgressCallback):
    """Trainer's progress bar with the loss at its end, instead of one printed line per step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def close(self):
        """Closes the bar after an error, which ends its line in the terminal."""
        if self.training_bar is not None:
            self.training_bar.close()


class BestIsHere(TrainerCallback):
    """Sets the path of the best checkpoint to the output folder, also after the folder was moved."""

    def on_train_begin(self, args, state, control, **kwargs):
        find_best(state, Path(args.output_dir))


def find_best(state: TrainerState, output: Path) -> None:
    """Sets state.best_model_checkpoint to the best checkpoint in this folder, or to None if it does not exist."""
    best = output / f"checkpoint-{state.best_global_step}"
    state.best_model_checkpoint = str(best) if state.best_global_step and best.is_dir() else None


class EndAtDivergence(TrainerCallback):
    """Ends a run whose loss is NaN or infinite, since every later adapter would be NaN."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        check_finite(f"the loss of step {state.global_step}", logs.get("loss"))


def check_finite(what: str, loss: float | None) -> None:
    """UserError if a loss is NaN or infinite."""
    if loss is not None and not math.isfinite(loss):
        raise UserError(f"{what} is {loss}: training has diverged, no adapter is written; lower `learning_rate`")


class StepTimes(TrainerCallback):
    """Seconds of every optimizer step, without the loading of the batch."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._start)


def train_to_the_end(trainer: TimedTrainer, checkpoint: Path | None) -> None:
    """Trains from the start or from a checkpoint. A checkpoint of the last step is only loaded, since Trainer would run
    one step more."""
    end = finished(checkpoint) if checkpoint else None
    if end is None:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            trainer.progress_bar.close()
    else:
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = end
        find_best(end, Path(trainer.args.output_dir))
        trainer.load_best()


def finished(checkpoint: Path) -> TrainerState | None:
    """The state in a checkpoint of a run's last step; None for a checkpoint of an earlier step."""
    state = TrainerState.load_from_json(str(checkpoint / STATE))
    return state if state.global_step >= state.max_steps else None
