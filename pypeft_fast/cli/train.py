"""Fine-tuning on transformers.Trainer: what `pypeft-fast finetune` and examples/demo.py share.

`model` is a PeftModel of pypeft_fast or of peft: nothing here depends on which of the two.
"""

import dataclasses
import math
import resource
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainingArguments

from .data import Example, split
from .errors import UserError, as_user_error
from .plot import Curve, plot_losses
from .tokens import IGNORE, Collator, Encoded, encode_all
from .trainer import TimedTrainer, check_finite, train_to_the_end
from .whole_files import write_json


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
    cut: int = 0  # of the others, those that are longer than max_length
    longest: int = 0  # tokens of the longest example before cutting


def prepare(tokenizer, examples: list[Example], settings: Settings) -> Data:
    """Splits and tokenises. UserError if max_length leaves nothing to train on or nothing held out."""
    train, held_out = split(examples, settings.eval_fraction, settings.seed)
    kept, other = (encode_all(tokenizer, part, settings.max_length) for part in (train, held_out))
    if not kept.examples or (held_out and not other.examples):
        raise UserError(
            f"--max-length {settings.max_length} leaves no token of an answer in any "
            f"{'held-out' if kept.examples else 'training'} example; raise it"
        )
    return Data(
        kept.examples,
        other.examples,
        held_out,
        dropped=kept.dropped + other.dropped,
        cut=kept.cut + other.cut,
        longest=max(kept.longest, other.longest),
    )


def fine_tune(model, data: Data, collator: Collator, settings: Settings, output: Path, checkpoint: Path | None) -> dict:
    """Trains, from the start or from a checkpoint; writes the adapter, metrics.json and loss.png; returns the metrics.

    "losses" of what is returned is the training loss of each step; metrics.json leaves it to the plot.

    Raises UserError, and writes no adapter, if the loss is or becomes NaN or infinite.
    """
    with model.disable_adapter():
        before = held_out_loss(model, data.held_out, collator, settings.batch_size)
    if before is not None and not math.isfinite(before):
        raise UserError(f"the base model's own loss is {before}: --model {settings.model} is damaged; get it again")
    trainer = make_trainer(model, data, collator, settings, output)
    train_to_the_end(trainer, checkpoint)
    after = held_out_loss(model, data.held_out, collator, settings.batch_size)
    check_finite("the loss on held-out data", after)
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    check_finite("the sum of the adapter's values", sum(float(p.sum()) for p in trained))
    with as_user_error(f"the adapter cannot be written to {output}", (OSError, RuntimeError, SafetensorError)):
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
        "cut_examples": data.cut,
        "longest_example": data.longest,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "settings": dataclasses.asdict(settings),
    }
    plot_losses([Curve(output.resolve().name, losses, before, after)], output / "loss.png")
    write_json(output / "metrics.json", metrics)  # last: a folder that holds it holds all
    return metrics | {"losses": losses}


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
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )
    return TimedTrainer(model, arguments, data_collator=collator, train_dataset=data.train)


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
