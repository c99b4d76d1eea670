"""A run of several adapters that is ready to train: one base model with all of them, and the examples of each."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import transformers

from ..adapters.adapted import adapted, add_adapter
from ..adapters.methods import check_by_rows
from ..base_models import load_base
from ..data.records import Example
from ..data.tokens import Collator
from ..errors import about
from .prepare import Data
from .ready import make_data
from .settings import Settings


@dataclass(frozen=True)
class Run:
    """One adapter: what it is trained by and on, and what the model calls it."""

    adapter: str
    settings: Settings
    data: Data
    parameters: dict[str, torch.nn.Parameter] = field(default_factory=dict)  # of the adapter, by their names


@dataclass(frozen=True)
class ReadyMany:
    """What `fine_tune_many` takes: a PeftModel whose adapters all train, and the runs by the names of their folders;
    also the tokenizer."""

    model: object
    collator: Collator
    tokenizer: object
    runs: dict[str, Run]

    @contextlib.contextmanager
    def only(self, name: str) -> Iterator[None]:
        """Within the block this adapter alone is active, and its parameters alone train; then those of all again."""
        self.model.set_adapter(self.runs[name].adapter)
        try:
            yield
        finally:
            for run in self.runs.values():
                for parameter in run.parameters.values():
                    parameter.requires_grad_(True)


def make_ready_many(
    settings: dict[str, Settings], examples: dict[str, list[Example]], held_out: dict[str, list[Example]]
) -> ReadyMany:
    """`make_ready` for several adapters by name, which may differ in their data and what follows from it.

    Each adapter begins with the values of a run of its own. held_out lacks the adapters whose held-out examples are
    split from their data. UserError: as `make_ready` raises it, or a method of which a batch cannot hold several.
    """
    first = next(iter(settings.values()))
    check_by_rows(first.method)
    base, tokenizer = load_base(first.model, first.dtype, first.quantize)
    data = {}
    for name, its in settings.items():
        with about(name):
            data[name] = make_data(base, tokenizer, its, examples[name], held_out.get(name))
    # Not the user's names: what PEFT calls an adapter is a part of the names of its parameters.
    runs = {name: Run(f"adapter{number}", settings[name], data[name]) for number, name in enumerate(settings)}
    model = None
    for run in runs.values():
        transformers.set_seed(run.settings.seed)
        if model is None:
            model = adapted(base, run.settings, run.adapter)
        else:
            add_adapter(model, run.settings, run.adapter)
    ready = ReadyMany(model, Collator.of(tokenizer), tokenizer, runs)
    for name, run in runs.items():
        with ready.only(name):
            run.parameters.update((key, p) for key, p in model.named_parameters() if p.requires_grad)
    return ready
