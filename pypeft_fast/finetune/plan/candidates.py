"""The candidates of a plan: method, target modules, rank, and the format of the base model."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as USUAL
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError
from ..quantized import check_method
from ..training.settings import Settings
from .skeleton import blocks_of

GROUPS = ("q,v", "attention", "mlp", "all-linear")
METHODS = ("lora", "dora", "ia3")
BASES = (None, "nf4", "int8")


@dataclass(frozen=True)
class Candidate:
    """An adapter that a run could train. targets: one of GROUPS. target_modules: the value of this option of a run."""

    method: str
    targets: str
    target_modules: str | tuple[str, ...]
    rank: int | None

    def settings(self, model: str, **others) -> Settings:
        """The settings of a run with this adapter; what is not given has the run's default."""
        modules = self.target_modules if isinstance(self.target_modules, str) else list(self.target_modules)
        own = {"method": self.method, "rank": self.rank, "alpha": None if self.rank is None else 2 * self.rank}
        return Settings(model, "", target_modules=modules, **own, **others)


def candidates(groups: dict, methods: Iterable[str], ranks: Iterable[int]) -> list[Candidate]:
    """Each method with each group of target modules and, if the method has ranks, each rank."""
    ranks, found = list(ranks), []
    for method in methods:
        for targets, modules in groups.items():
            of_this = [None] if method == "ia3" else ranks
            found += [Candidate(method, targets, modules, rank) for rank in of_this]
    return found


def runs_over(candidate: Candidate, base: str | None) -> bool:
    """Whether a run trains this candidate over a base model in this format."""
    try:
        check_method(candidate.method, base)
    except UserError:
        return False
    return True


def target_groups(model: nn.Module, depth: int, wanted: Iterable[str] = GROUPS) -> dict:
    """{group: target_modules} of the groups in this model of `depth` blocks. A group with another's layers is left out.

    q,v: the layers that PEFT adapts in this architecture by default. attention and mlp: the blocks' linear layers
    inside and outside a module whose class is called an attention. all-linear: PEFT's own value.
    """
    blocks = blocks_of(model, depth)
    prefix = next(name for name, its in model.named_modules() if its is blocks)
    layers = {name: its for name, its in blocks.named_modules() if isinstance(its, (nn.Linear, Conv1D))}
    attention = {name for name in layers if _in_attention(blocks, name)}
    usual = USUAL.get(model.config.get_text_config().model_type, ("q_proj", "v_proj"))
    usual = [usual] if isinstance(usual, str) else usual
    members = {
        "q,v": {name for name in layers if any(name.endswith(f".{end}") for end in usual)},
        "attention": attention,
        "mlp": set(layers) - attention,
    }
    outside = [name for name, _ in model.named_modules() if name and not name.startswith(f"{prefix}.")]
    found: dict = {}
    for group in GROUPS:
        mine = members.get(group)
        same = mine is not None and (not mine or any(mine == members[other] for other in found))
        if layers and group in wanted and not same:
            found[group] = "all-linear" if mine is None else _named(mine, layers, outside)
    return found


def _in_attention(blocks, name: str) -> bool:
    parts = name.split(".")
    above = (blocks.get_submodule(".".join(parts[:end])) for end in range(1, len(parts)))
    return any("attention" in type(module).__name__.lower() for module in above)


def _named(mine: set[str], layers: Iterable[str], outside: list[str]) -> str | tuple[str, ...]:
    """The last parts of the names if no other module has one of them, else an expression for the names in a block."""
    ends = {name.rpartition(".")[2] for name in mine}
    others = [*(name for name in layers if name not in mine), *outside]
    if not any(name.rpartition(".")[2] in ends for name in others):
        return tuple(sorted(ends))
    inside = sorted({re.escape(name.partition(".")[2]) for name in mine})
    return rf".*\.\d+\.({'|'.join(inside)})"
