"""The blocks of a transformer, and in each the linear layers that end attention and the feedforward part.

They are found by structure, not by the architecture's name: a block is an entry of a ModuleList with attention in it;
the feedforward part is the pair of linear layers, one wide and one back, outside of attention.
"""

from typing import NamedTuple

from torch import nn

from ..linear import is_conv1d, is_linear
from .model import base_of


class Block(NamedTuple):
    attention: tuple[str, ...]  # the last linear layer of each attention: several where there is cross-attention
    feedforward_in: str  # a linear layer that takes the feedforward part's input
    feedforward: str  # the one that gives its output


def find_blocks(model, modules) -> list[Block]:
    """The blocks in the model's order; ValueError if there is none, or one whose parts are not found."""
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    found: dict[str, Block] = {}  # by the feedforward part: a ModuleList inside a block holds no block of its own
    for name, module in modules.items():
        for index in range(len(module)) if isinstance(module, nn.ModuleList) else ():
            block = _block(modules, f"{name}.{index}.", width)
            if block is not None:
                found.setdefault(block.feedforward, block)
    if not found:
        raise ValueError(
            f"no transformer block is found in {type(model).__name__}: bottlenecks need a ModuleList of blocks, "
            "each with attention and a feedforward part of linear layers"
        )
    return list(found.values())


def features(linear) -> tuple[int, int]:
    """(K, N) of a linear layer: its inputs and its outputs, however its weight is stored."""
    return tuple(linear.weight.shape) if is_conv1d(linear) else (linear.in_features, linear.out_features)


def _block(modules, start, width) -> Block | None:
    """The block whose modules' names begin with `start`, or None if it is none."""
    linear = {n: base_of(m) for n, m in modules.items() if n.startswith(start) and _is_called(base_of(m))}
    attention: dict[str, str] = {}  # {an attention: its last linear layer}
    starts, ends = [], []
    for name, module in linear.items():
        within = name.removeprefix(start).split(".")
        index = next((i for i, part in enumerate(within[:-1]) if _is_attention(part)), None)
        if index is not None:
            attention[".".join(within[: index + 1])] = name
            continue
        K, N = features(module)
        starts += [name] * (K == width)
        ends += [name] * (N == width)
    if not (attention and starts and ends):
        return None
    return Block(tuple(attention.values()), starts[0], ends[-1])


def _is_called(module) -> bool:
    """A linear layer that its parent calls: nn.MultiheadAttention only reads the weight of its last one."""
    return is_linear(module) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _is_attention(part) -> bool:
    return part.lower().replace("_", "").endswith(("attention", "attn"))
