"""Prints the held-out loss during training."""

from tqdm import tqdm
from transformers import TrainerCallback

from ..finetune.text import safe


class SayEvaluations(TrainerCallback):
    """Prints one line for each evaluation, above the progress bar."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        tqdm.write(safe(f"step {state.global_step}: loss on held-out data {metrics['eval_loss']:.3f}"))
