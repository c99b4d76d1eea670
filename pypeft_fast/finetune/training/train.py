"""Fine-tuning with transformers.Trainer, for `pypeft-fast finetune` and examples/demo.py.

`model` may be a PeftModel of pypeft_fast or of peft.
"""

import contextlib
import math
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, TrainingArguments

from ..base_models import public_name
from ..data.tokens import Collator
from ..errors import UserError, as_user_error
from ..held_out import held_out_loss
from ..report.card import card, is_card
from ..report.plot import Curve, plot_losses
from ..whole_files import write_json, write_whole
from .metrics import metrics_of
from .prepare import Data
from .settings import Settings
from .trainer import TimedTrainer, check_finite, train_to_the_end


def fine_tune(
    model, data: Data, collator: Collator, settings: Settings, output: Path, checkpoint: Path | None, callbacks=()
) -> dict:
    """Trains, from the start or from a checkpoint; writes the adapter, metrics.json and loss.png; returns the metrics.

    If the run has evaluations, the written adapter is that of the lowest held-out loss. callbacks: further
    transformers.TrainerCallbacks. The returned metrics also have "losses", the training loss of each step.

    Raises UserError, and writes no adapter, if a loss is NaN or infinite.
    """
    with contextlib.nullcontext() if settings.adapter else model.disable_adapter():
        before = held_out_loss(model, data.held_out, collator, settings.batch_size)
    if before is not None and not math.isfinite(before):
        what = f"`adapter` {settings.adapter}" if settings.adapter else f"`model` {settings.model}"
        raise UserError(f"the loss before training is already {before}: {what} is damaged; get it again")
    trainer = make_trainer(model, data, collator, settings, output, callbacks)
    train_to_the_end(trainer, checkpoint)
    after = held_out_loss(model, data.held_out, collator, settings.batch_size)
    check_finite("the loss on held-out data", after)
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    check_finite("the sum of the adapter's values", sum(float(p.sum()) for p in trained))
    metrics = metrics_of(trainer, data, settings, before, after)
    readme = output / "README.md"
    theirs = None if is_card(readme) else readme.read_bytes()
    with as_user_error(f"the adapter cannot be written to {output}", (OSError, RuntimeError, SafetensorError)):
        save_portable(model, output, public_name(settings.model))
    if theirs is None:
        write_whole(readme, card(metrics, output.resolve().name).encode())
    else:
        write_whole(readme, theirs)  # restores the user's README.md, to which PEFT has added text

    losses, held_out = metrics["loss_history"]["train"], metrics["loss_history"]["held_out"]
    curve = Curve(output.resolve().name, [loss for _, loss in losses], before, after, held_out, metrics["best_step"])
    plot_losses([curve], output / "loss.png")
    write_json(output / "metrics.json", metrics)  # written last: a folder with metrics.json is complete
    return metrics | {"losses": curve.losses}


def save_portable(model, output: Path, base: str) -> None:
    """Saves the adapter with the base's public name in its config, which is the same on every machine.

    The embeddings are not saved, since they were not resized; with "auto", PEFT would ask the Hub whether they were.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    model.save_pretrained(output, save_embedding_layers=False)


def make_trainer(model, data: Data, collator: Collator, settings: Settings, output: Path, callbacks=()) -> TimedTrainer:
    """A trainer for the model's trainable parameters on data.train; checkpoints are written to output/checkpoint-STEP.

    With held-out data the trainer evaluates at each checkpoint and loads the best checkpoint at the end.
    """
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    every = settings.checkpoint_steps(len(data.train))
    saving = "steps" if every else "no"
    evaluating = saving if data.held_out else "no"
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.steps(len(data.train)) // 20,  # the first warmup step has a learning rate of 0
        seed=settings.seed,
        logging_steps=1,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy=saving,
        save_steps=every or 1,
        eval_strategy=evaluating,
        eval_steps=every or 1,
        load_best_model_at_end=evaluating != "no",
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # the counter of early stopping
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
    )
    callbacks = list(callbacks)
    if settings.patience and evaluating != "no":
        callbacks.append(EarlyStoppingCallback(settings.patience))
    return TimedTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=data.train,
        eval_dataset=data.held_out or None,
        callbacks=callbacks,
    )
