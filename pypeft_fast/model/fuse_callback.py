"""FuseCallback: fuse() for scripts that build the PEFT model themselves and hand out a Trainer, or take callbacks."""

from transformers import TrainerCallback

from .fuse import FuseReport, fuse


class FuseCallback(TrainerCallback):
    """Fuses the model of a transformers.Trainer in place as training begins: `Trainer(..., callbacks=[FuseCallback()])`.

    For every Trainer whose model is Hugging Face PEFT's, TRL's and LLaMA-Factory's too; PEFT may have built it in
    Trainer's constructor. The model stays fused after training. `report` is what fuse returned, None before.

    Args:
        strict: raise ValueError as training begins unless every adapter layer can be fused.
    """

    def __init__(self, strict: bool = False):
        self.strict = strict
        self.report: FuseReport | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.report = fuse(model, strict=self.strict)
