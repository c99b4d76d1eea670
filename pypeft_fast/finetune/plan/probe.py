"""Times one block on this machine, with random weights of the right shapes: forward, backward, and the update."""

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

import pypeft_fast

from ..quantized import quantized
from .candidates import Candidate
from .counted import with_adapter
from .live import loss_of
from .skeleton import Skeleton, blocks_of

TOKENS = 512  # of a probe; the times of fewer rows are scaled to the rows of the batch
STEPS = 3  # after one that warms up; the median of them does not see a single interruption


@dataclass(frozen=True)
class Times:
    """Seconds of a step of one block, of its forward pass alone, and of the rest of a step: embeddings, output layer
    and loss."""

    block: float
    forward: float
    rest: float

    def step(self, depth: int, checkpointing: bool) -> float:
        """Seconds of a step of a model of `depth` blocks; with checkpointing each block runs forward twice."""
        return self.rest + depth * (self.block + checkpointing * self.forward)


class Probe:
    """A model of one block in one format, which gets the candidates' adapters in turn."""

    def __init__(self, skeleton: Skeleton, dtype: str, base: str | None, shape: tuple[int, int], clock=None):
        """shape: rows and tokens of the batch. clock: a function that returns seconds; wall time by default."""
        self.clock = clock or time.perf_counter
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.skeleton = skeleton
        self.rest: float | None = None  # timed with the first candidate
        self.model = quantized(skeleton.model(dtype, 1, "cpu"), base, skeleton.name).to(self.device)
        rows = min(shape[0], max(1, TOKENS // shape[1]))
        self.scale = shape[0] / rows
        vocabulary = skeleton.config.get_text_config().vocab_size
        self.tokens = torch.randint(0, vocabulary, (rows, shape[1]), device=self.device)

    def times(self, candidate: Candidate) -> Times:
        """The times of the batch with this candidate's adapter."""
        model = with_adapter(self.model, candidate, self.skeleton.task).train()
        block = blocks_of(model, 1)[0]
        forward = self._forward_of(model, block)
        whole = None if self.rest is not None else _training(model, lambda: self._loss(model))

        def evaluate():
            with torch.no_grad():
                forward()

        seconds = self._median(_training(block, lambda: forward().float().square().mean()))
        if whole is not None:
            self.rest = max(self._median(whole) - seconds, 0.0)
        found = Times(seconds, self._median(evaluate), self.rest)
        self.model = without_adapter(model)
        return found

    def _loss(self, model) -> torch.Tensor:
        return loss_of(model, self.tokens, self.skeleton.causal)

    def _forward_of(self, model, block) -> Callable[[], torch.Tensor]:
        """The block's forward pass alone, with the arguments that the model gives it."""
        calls: list = []
        handle = block.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True)
        with torch.no_grad():
            self._loss(model)
        handle.remove()
        args, kwargs = calls[0]
        hidden = (args[0] if args else kwargs.pop("hidden_states")).detach().requires_grad_()

        def forward():
            found = block(hidden, *args[1:], **kwargs)
            return found if isinstance(found, torch.Tensor) else found[0]

        return forward

    def _median(self, step: Callable[[], None]) -> float:
        seconds = []
        for _ in range(1 + STEPS):
            began = self.clock()
            step()
            if self.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(self.clock() - began)
        return self.scale * statistics.median(seconds[1:])


def without_adapter(model) -> nn.Module:
    """The base model without its adapter. PEFT's unload refuses IA3 over quantised layers."""
    pypeft_fast.unfuse(model)
    base = model.get_base_model()
    for name, layer in list(base.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            base.set_submodule(name, layer.get_base_layer())
    del base.peft_config
    return base


def _training(module: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """A step of the module's trainable parameters: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-6)

    def step():
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def between(low: Times, high: Times, ranks: tuple[int, int], rank: int) -> Times:
    """The times at a rank, on the line through the times at two ranks."""
    if ranks[0] == ranks[1]:
        return low
    at = (rank - ranks[0]) / (ranks[1] - ranks[0])
    pairs = ((getattr(low, name), getattr(high, name)) for name in ("block", "forward", "rest"))
    return Times(*(max(a + at * (b - a), 0.0) for a, b in pairs))


def ends(ranks: Iterable[int]) -> tuple[int, int]:
    """The smallest and the largest rank, which a probe times; the times of the others lie between."""
    return min(ranks), max(ranks)
