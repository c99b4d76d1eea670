"""Trains a few candidates for some steps, on the same examples in the same order, and compares their held-out loss."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import transformers

from ..adapters.adapted import adapted
from ..held_out import losses_by_example
from ..plan.candidates import Candidate
from ..plan.probe import without_adapter
from ..training.settings import Settings
from ..training.train import make_trainer
from ..training.trainer import check_finite, train_to_the_end
from .spread import ratio


@dataclass(frozen=True)
class Tried:
    """A candidate after the trial. training: the loss of each step. held_out: the summed loss of each held-out example,
    in nats. tokens: the number of target tokens of each."""

    targets: str
    training: tuple[float, ...]
    held_out: tuple[float, ...]
    tokens: tuple[int, ...]
    seconds: float

    @property
    def loss(self) -> tuple[float, float | None]:
        """The held-out loss per token, and its standard error over the examples."""
        return ratio(self.held_out, self.tokens)


@dataclass(frozen=True)
class Trial:
    """base: the base model, trained for no step. tried: the candidates."""

    steps: int
    learning_rate: float
    base: Tried
    tried: tuple[Tried, ...]

    @property
    def examples(self) -> int:
        return len(self.base.tokens)

    @property
    def tokens(self) -> int:
        return sum(self.base.tokens)

    def ranked(self) -> list[Tried]:
        """The candidates, that with the lowest held-out loss first."""
        return sorted(self.tried, key=lambda its: its.loss[0])

    def lead(self) -> tuple[float, float | None]:
        """How much lower the loss of the best candidate is than that of the second, and the standard error of this
        difference: over the examples, each of which has both losses, so that their common part cancels."""
        best, second = self.ranked()[:2]
        differences = [b - a for a, b in zip(best.held_out, second.held_out, strict=True)]
        return ratio(differences, best.tokens)


def run_trial(
    base, candidates: list[tuple[Candidate, bool]], data, collator, settings: Settings, told: Callable[[str], None]
):
    """(the trial, the base model without an adapter).

    candidates: with whether each needs gradient checkpointing. settings: of the runs, with max_steps; each candidate
    replaces rank, alpha and target_modules. The seed gives all runs the same order of the examples.

    UserError if a loss is NaN or infinite.
    """
    before = losses_by_example(base, data.held_out, collator, settings.batch_size)
    tried = []
    for candidate, checkpointing in candidates:
        told(f"training {candidate.targets} for {settings.max_steps} steps")
        own = candidate.settings(settings.model)
        mine = replace(
            settings,
            rank=own.rank,
            alpha=own.alpha,
            target_modules=own.target_modules,
            gradient_checkpointing=checkpointing,
        )
        transformers.set_seed(mine.seed)
        model = adapted(base, mine)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(model, data, collator, mine, Path(folder))
            train_to_the_end(trainer, None)
        seconds = time.perf_counter() - began
        training = tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        held_out = losses_by_example(model, data.held_out, collator, mine.batch_size)
        check_finite(f"the held-out loss of {candidate.targets}", sum(loss for loss, _ in held_out))
        tried.append(_tried(candidate.targets, held_out, training, seconds))
        base = without_adapter(model)
        if checkpointing:
            base.gradient_checkpointing_disable()
    return Trial(settings.max_steps, settings.learning_rate, _tried("base model", before), tuple(tried)), base


def _tried(targets: str, held_out, training=(), seconds=0.0) -> Tried:
    return Tried(targets, training, *map(tuple, zip(*held_out, strict=True)), seconds)
