"""The contents of metrics.json."""

import dataclasses
import statistics

from ..base_models import public_name
from ..memory import peak_memory_bytes
from .settings import Settings


def metrics_of(trainer, data, settings: Settings, before: float | None, after: float | None) -> dict:
    """The contents of metrics.json for a finished run."""
    state, seconds = trainer.state, trainer.step_times.seconds
    losses = [[entry["step"], entry["loss"]] for entry in state.log_history if "loss" in entry]
    held_out = [[entry["step"], entry["eval_loss"]] for entry in state.log_history if "eval_loss" in entry]
    if before is not None:
        held_out = [[0, before], *(held_out or [[state.global_step, after]])]
    trainable, total = trainer.model.get_nb_trainable_parameters()
    return {
        "eval_loss_before": before,
        "eval_loss_after": after,
        "train_loss_last": losses[-1][1],
        "steps": state.global_step,
        "best_step": state.best_global_step,  # None if there was no evaluation during training
        "stopped_early": state.global_step < state.max_steps,
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "train_examples": len(data.train),
        "eval_examples": len(data.held_out),
        "dropped_examples": data.dropped,
        "cut_examples": data.cut,
        "longest_example": data.longest,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "base_model": public_name(settings.model),
        "loss_history": {"train": losses, "held_out": held_out},
        "settings": dataclasses.asdict(settings),
    }
