"""What is said while a run trains."""

from tqdm import tqdm
from transformers import TrainerCallback

from ..finetune.text import safe


class SayEvaluations(TrainerCallback):
    """A line for each evaluation, above the progress bar; it begins with the adapter's name where there are several."""

    def __init__(self, name: str = ""):
        self.start = f"{name}, step" if name else "step"

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        tqdm.write(safe(f"{self.start} {state.global_step}: loss on held-out data {metrics['eval_loss']:.3f}"))
