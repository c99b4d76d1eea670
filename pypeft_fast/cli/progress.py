"""Prints the held-out loss and the expected time during training."""

import statistics
import time

from tqdm import tqdm
from transformers import TrainerCallback

from ..finetune.text import safe

FIRST = 3  # steps that are timed, after one that is not


class SayEvaluations(TrainerCallback):
    """Prints one line for each evaluation, above the progress bar, with the adapter's name if given."""

    def __init__(self, name: str = ""):
        self.start = f"{name}, step" if name else "step"

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        tqdm.write(safe(f"{self.start} {state.global_step}: loss on held-out data {metrics['eval_loss']:.3f}"))


class SayTime(TrainerCallback):
    """Prints one line after the first steps: the seconds of a step and of all that follow."""

    def __init__(self, name: str = ""):
        self.start = f"{name}: " if name else ""
        self._seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if len(self._seconds) > FIRST:
            return
        self._seconds.append(time.perf_counter() - self._began)
        rest = state.max_steps - state.global_step
        if len(self._seconds) == FIRST + 1 and rest > 0:
            step = statistics.median(self._seconds[1:])  # the first step warms up
            then = f"{rest} more step{'s' * (rest > 1)} take about {lasting(rest * step)}, and the evaluations"
            tqdm.write(safe(f"{self.start}{step:.2g} s a step: {then}"))


def lasting(seconds: float) -> str:
    """A length of time, rounded."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
