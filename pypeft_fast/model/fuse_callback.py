"""FuseCallback: calls fuse() as a Trainer begins, for scripts that build the PEFT model themselves."""

import warnings

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .fuse import FuseReport, fuse


class FuseCallback(TrainerCallback):
    """Fuses a Trainer's model in place as training begins: `Trainer(..., callbacks=[FuseCallback()])`.

    Works with any subclass of transformers.Trainer whose model has Hugging Face PEFT's adapters when training begins;
    TRL's trainers add the adapters in their constructor. The model stays fused after training. With FSDP, Trainer
    shards the model before this callback runs; the callback then fuses nothing and warns, so call fuse before training.
    `report` is the FuseReport, None before training.

    Args:
        strict: raise ValueError as training begins unless every adapter layer can be fused.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.report: FuseReport | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs,
    ) -> None:
        self.report = fuse(model, strict=self.strict)
        if not self.report.fused:
            warnings.warn(f"FuseCallback fused nothing: {self.report}", stacklevel=2)
