"""Fine-tuning on transformers.Trainer: what `pypeft-fast finetune` and examples/demo.py share.

`model` is a PeftModel of pypeft_fast or of peft: nothing here depends on which of the two.
"""

import dataclasses
import json
import math
import os
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerState, TrainingArguments

from ..model.trainer import AdapterTrainer
from .data import Example, split
from .errors import UserError
from .plot import Curve, plot_losses
from .tokens import IGNORE, Collator, Encoded, encode_all


@dataclass(frozen=True)
class Settings:
    """What a run depends on; --resume insists on the same, since data order and learning rate follow from it."""

    model: str
    data: str
    method: str = "lora"
    rank: int | None = 16  # None: the method has no such option
    alpha: float | None = 32
    dropout: float | None = 0.05
    target_modules: str | list[str] | None = "all-linear"
    reduction_factor: float | None = None
    virtual_tokens: int | None = None
    epochs: float = 3
    max_steps: int = -1  # when positive, instead of epochs
    batch_size: int = 8
    gradient_accumulation: int = 1
    learning_rate: float = 2e-4
    max_length: int = 512
    dtype: str = "float32"
    eval_fraction: float = 0.1
    seed: int = 0
    save_every: int = 100  # steps; 0: no checkpoints
    gradient_checkpointing: bool = False


@dataclass(frozen=True)
class Data:
    train: list[Encoded]
    held_out: list[Encoded]
    held_out_examples: list[Example]
    dropped: int  # examples of which max_length leaves no answer token


def prepare(tokenizer, examples: list[Example], settings: Settings) -> Data:
    """Splits and tokenises. UserError if max_length leaves nothing to train on or nothing held out."""
    train, held_out = split(examples, settings.eval_fraction, settings.seed)
    kept, dropped = encode_all(tokenizer, train, settings.max_length)
    kept_held_out, dropped_held_out = encode_all(tokenizer, held_out, settings.max_length)
    if not kept or (held_out and not kept_held_out):
        raise UserError(
            f"--max-length {settings.max_length} leaves no token of an answer in any "
            f"{'held-out' if kept else 'training'} example; raise it"
        )
    return Data(kept, kept_held_out, held_out, dropped + dropped_held_out)


class TimedTrainer(AdapterTrainer):
    """An AdapterTrainer with this command's progress bar, that keeps the times of its steps."""

    def __init__(self, model, *args, **kwargs):
        super().__init__(model, *args, **kwargs)
        self.remove_callback(ProgressCallback)
        self.add_callback(ProgressBar)
        self.add_callback(EndAtDivergence)
        self.step_times = StepTimes()
        self.add_callback(self.step_times)


class ProgressBar(ProgressCallback):
    """Trainer's progress bar with the loss at its end, instead of a line a step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)


class EndAtDivergence(TrainerCallback):
    """Ends a run whose loss is no number any more: from there on every adapter is NaN."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        check_finite(f"the loss of step {state.global_step}", logs.get("loss"))


def check_finite(what: str, loss: float | None) -> None:
    """UserError if a loss is NaN or infinite."""
    if loss is not None and not math.isfinite(loss):
        raise UserError(f"{what} is {loss}: training has diverged, no adapter is written; lower --learning-rate")


class StepTimes(TrainerCallback):
    """Seconds of every optimizer step, the loading of its batch left out."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._start)


def fine_tune(model, data: Data, collator: Collator, settings: Settings, output: Path, checkpoint: Path | None) -> dict:
    """Trains, from the start or from a checkpoint; writes the adapter, metrics.json and loss.png; returns the metrics.

    "losses" of what is returned is the training loss of each step; metrics.json leaves it to the plot.

    Raises UserError, and writes no adapter, if the loss becomes NaN or infinite.
    """
    with model.disable_adapter():
        before = held_out_loss(model, data.held_out, collator, settings.batch_size)
    trainer = make_trainer(model, data, collator, settings, output)
    train_to_the_end(trainer, checkpoint)
    after = held_out_loss(model, data.held_out, collator, settings.batch_size)
    check_finite("the loss on held-out data", after)
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    check_finite("the sum of the adapter's values", sum(float(p.sum()) for p in trained))
    model.save_pretrained(output)

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    seconds = trainer.step_times.seconds
    trainable, total = model.get_nb_trainable_parameters()
    metrics = {
        "eval_loss_before": before,
        "eval_loss_after": after,
        "train_loss_last": losses[-1],
        "steps": trainer.state.global_step,
        "seconds_per_step": statistics.median(seconds) if seconds else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "train_examples": len(data.train),
        "eval_examples": len(data.held_out),
        "dropped_examples": data.dropped,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "settings": dataclasses.asdict(settings),
    }
    write_json(output / "metrics.json", metrics)
    plot_losses([Curve(output.name, losses, before, after)], output / "loss.png")
    return metrics | {"losses": losses}


def train_to_the_end(trainer: TimedTrainer, checkpoint: Path | None) -> None:
    """Trains from the start or from a checkpoint. One of the last step is only loaded: Trainer would make one more."""
    end = finished(checkpoint) if checkpoint else None
    if end is None:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    else:
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state = end


def finished(checkpoint: Path) -> TrainerState | None:
    """The state in a checkpoint of a run's last step; None for one of an earlier step."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return state if state.global_step >= state.max_steps else None


def make_trainer(model, data: Data, collator: Collator, settings: Settings, output: Path) -> TimedTrainer:
    """A trainer of the model's trainable parameters on data.train; checkpoints go to output/checkpoint-STEP."""
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        seed=settings.seed,
        logging_steps=1,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or 1,
        save_total_limit=2,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )
    return TimedTrainer(model, arguments, data_collator=collator, train_dataset=data.train)


def last_checkpoint(output: Path) -> Path | None:
    """The newest complete checkpoint: one that was interrupted while being written lacks the trainer's state."""
    complete = [p for p in output.glob("checkpoint-*") if (p / "trainer_state.json").is_file()]
    return max(complete, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


@torch.no_grad()
def held_out_loss(model, encoded: list[Encoded], collator: Collator, batch_size: int = 8) -> float | None:
    """Mean cross entropy in nats per target token, over all of them, in evaluation mode. None if there are none."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(encoded), batch_size):
        batch = {k: v.to(model.device) for k, v in collator(encoded[start : start + batch_size]).items()}
        targets = int((batch["labels"][:, 1:] != IGNORE).sum())
        total += float(model(**batch).loss) * targets
        count += targets
    model.train(was_training)
    return total / count if count else None


def peak_memory_bytes() -> int:
    """The most memory this process has held so far, as the system counts it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_json(path: Path, value) -> None:
    """Written whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(scratch, path)
