"""Prints the held-out loss during training."""

from tqdm import tqdm
from transformers import TrainerCallback

from ..finetune.text import safe


class SayEvaluations(TrainerCallback):
    """Prints one line for each evaluation, above the progress bar, with the adapter's name if given."""

    def __init__(self, name: str = ""):
        self.start = f"{name}, step" if name else "step"

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        tqdm.write(safe(f"{self.start} {state.global_step}: loss on held-out data {metrics['eval_loss']:.3f}"))
