"""Fine-tuning with transformers.Trainer, for `pypeft-fast finetune` and examples/demo.py.

`model` may be a PeftModel of pypeft_fast or of peft.
"""

from pathlib import Path

import torch
from transformers import EarlyStoppingCallback, TrainingArguments

from ..data.tokens import Collator
from ..report.plot import plot_losses
from ..whole_files import write_json
from .prepare import Data
from .reporting import reporting
from .results import loss_before, write_results
from .settings import Settings
from .trainer import TimedTrainer, train_to_the_end


def fine_tune(
    model,
    data: Data,
    collator: Collator,
    settings: Settings,
    output: Path,
    checkpoint: Path | None,
    callbacks=(),
    report_to=(),
) -> dict:
    """Trains, from the start or from a checkpoint; writes the adapter, metrics.json and loss.png; returns the metrics.

    If the run has evaluations, the written adapter is that of the lowest held-out loss. callbacks: further
    transformers.TrainerCallbacks. report_to: names of REPORTERS. The returned metrics also have "losses", the training
    loss of each step.

    Raises UserError, and writes no adapter, if a loss is NaN or infinite.
    """
    before = loss_before(model, data, collator, settings)
    trainer = make_trainer(model, data, collator, settings, output, callbacks, report_to)
    train_to_the_end(trainer, checkpoint)
    metrics, curve = write_results(trainer, data, settings, output, before)
    plot_losses([curve], output / "loss.png")
    write_json(output / "metrics.json", metrics)  # written last: a folder with metrics.json is complete
    return metrics | {"losses": curve.losses}


def make_trainer(
    model, data: Data, collator: Collator, settings: Settings, output: Path, callbacks=(), report_to=()
) -> TimedTrainer:
    """A trainer for the model's trainable parameters on data.train; checkpoints are written to output/checkpoint-STEP.

    With held-out data the trainer evaluates at each checkpoint and loads the best checkpoint at the end.
    """
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    every = settings.checkpoint_steps(len(data.rows))
    saving = "steps" if every else "no"
    evaluating = saving if data.held_out else "no"
    names, reporters = reporting(report_to)
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=settings.warmup_steps(len(data.rows)),
        optim=settings.optimizer,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
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
        report_to=names or "none",
        run_name=output.resolve().name,
    )
    callbacks = [*reporters, *callbacks]
    if settings.patience and evaluating != "no":
        callbacks.append(EarlyStoppingCallback(settings.patience))
    return TimedTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=data.rows,
        eval_dataset=data.held_out or None,
        callbacks=callbacks,
    )
