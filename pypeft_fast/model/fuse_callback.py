"""FuseCallback: fuse() for scripts that build the PEFT model themselves and expose a Trainer or its callbacks."""

import warnings

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .fuse import FuseReport, fuse


class FuseCallback(TrainerCallback):
    """Fuses a Trainer's model in place as training begins: `Trainer(..., callbacks=[FuseCallback()])`.

    For any subclass of transformers.Trainer whose model has Hugging Face PEFT's adapters by then; TRL's trainers give
    them to it in their constructor. The model stays fused. If Trainer shards the model by FSDP, it does so before this
    callback, which then fuses nothing and warns: call fuse yourself before training. `report` is what fuse returned,
    None before training.

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
