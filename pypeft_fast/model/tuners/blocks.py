"""The blocks of a transformer, and in each the linear layers that end attention and the feedforward part.

They are found by structure, not by the architecture's name: a block is an entry of a ModuleList with attention in it;
the feedforward part is the pair of linear layers, one wide and one back, outside of attention.
"""

from dataclasses import dataclass

from torch import nn

from ..linear import is_conv1d, is_linear
from .model import base_of


@dataclass(frozen=True)
class Block:
    attention: tuple[str, ...]  # the last linear layer of each attention: several where there is cross-attention
    feedforward_in: str  # a linear layer that takes the feedforward part's input
    feedforward: str  # the one that gives its output


def find_blocks(model, modules) -> list[Block]:
    """The blocks in the model's order; ValueError if there is none, or one whose parts are not found."""
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    found = []
    for name, module in modules.items():
        for index in range(len(module)) if isinstance(module, nn.ModuleList) else ():
            block = _block(modules, f"{name}.{index}.", width)
            if block is not None:
                found.append(block)
    found = _outermost(found)
    if not found:
        raise ValueError(
            f"no transformer block is found in {type(model).__name__}: bottlenecks need a ModuleList of blocks, "
            "each with attention and a feedforward part of linear layers"
        )
    return found


def features(linear) -> tuple[int, int]:
    """(K, N) of a linear layer: its inputs and its outputs, however its weight is stored."""
    return tuple(linear.weight.shape) if is_conv1d(linear) else (linear.in_features, linear.out_features)


def _block(modules, start, width):
    """The block whose modules' names begin with `start`, or None if it is none."""
    linear = {n: base_of(m) for n, m in modules.items() if n.startswith(start) and _is_called(base_of(m))}
    groups: dict[str, list[str]] = {}
    outside = []
    for name in linear:
        within = name.removeprefix(start).split(".")
        index = next((i for i, part in enumerate(within[:-1]) if _is_attention(part)), None)
        if index is None:
            outside.append(name)
        else:
            groups.setdefault(".".join(within[: index + 1]), []).append(name)
    if not groups or not outside:
        return None
    ends = [name for name in outside if features(linear[name])[1] == width]
    starts = [name for name in outside if features(linear[name])[0] == width]
    if not ends or not starts:
        return None
    attention = tuple(names[-1] for names in groups.values())
    return Block(attention, starts[0], ends[-1])


def _is_called(module) -> bool:
    """A linear layer that its parent calls: nn.MultiheadAttention only reads the weight of its last one."""
    return is_linear(module) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _is_attention(part) -> bool:
    return part.lower().replace("_", "").endswith(("attention", "attn"))


def _outermost(blocks):
    """Each linear layer once: a ModuleList inside a block holds no block of its own."""
    seen: set[str] = set()
    kept = []
    for block in blocks:
        if block.feedforward not in seen:
            seen.add(block.feedforward)
            kept.append(block)
    return kept
