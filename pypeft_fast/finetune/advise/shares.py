"""The shares of the gradient energy: of each module type, each block, and each candidate."""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists

from .energy import LayerEnergy
from .spread import ratio


@dataclass(frozen=True)
class Share:
    """Some adapted layers against all. energy: their share of the gradient energy, 0 to 1. error: its standard error
    over the batches, None for one batch. parameters: of their adapters. cost: their share of the parameters."""

    layers: int
    parameters: int
    energy: float
    error: float | None
    cost: float

    @property
    def density(self) -> float:
        """Energy per parameter, relative to the mean of all layers."""
        return self.energy / self.cost


def share_of(layers: Iterable[LayerEnergy], every: list[LayerEnergy]) -> Share:
    """The share of these layers in `every` layer."""
    layers = list(layers)
    parts = [sum(values) for values in zip(*(its.energies for its in layers), strict=True)]
    wholes = [sum(values) for values in zip(*(its.energies for its in every), strict=True)]
    parameters = sum(its.parameters for its in layers)
    energy, error = ratio(parts, wholes)
    return Share(len(layers), parameters, energy, error, parameters / sum(its.parameters for its in every))


def by_module(every: list[LayerEnergy]) -> dict[str, Share]:
    """{module type: its share}, in the order of a block; a type has its short name if no other type has it too."""
    ends = {module: module.rpartition(".")[2] for module in dict.fromkeys(its.module for its in every)}
    unique = {module: end if list(ends.values()).count(end) == 1 else module for module, end in ends.items()}
    return _by(every, lambda its: unique[its.module])


def by_block(every: list[LayerEnergy]) -> dict[int, Share]:
    """{number of a block: its share}; layers outside the blocks have no entry."""
    return _by([its for its in every if its.block is not None], lambda its: its.block, every)


def of_targets(target_modules: str | tuple[str, ...], every: list[LayerEnergy]) -> Share:
    """The share of the layers that PEFT adapts for this value of target_modules."""
    if target_modules == "all-linear":
        return share_of(every, every)
    config = LoraConfig(target_modules=target_modules if isinstance(target_modules, str) else list(target_modules))
    return share_of([its for its in every if check_target_module_exists(config, its.name)], every)


def _by(layers: list[LayerEnergy], key: Callable[[LayerEnergy], Hashable], every=None) -> dict:
    groups: dict = {}
    for its in layers:
        groups.setdefault(key(its), []).append(its)
    return {name: share_of(members, layers if every is None else every) for name, members in groups.items()}
