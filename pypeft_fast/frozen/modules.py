"""Which modules hold a frozen weight, and how: module -> Frozen, or the reason why not."""

import torch
from torch import nn

from .operand import Frozen
from .quantized_modules import quantized

# Not the class of nn.MultiheadAttention's out_proj: that module reads its weight itself.
_READ = nn.modules.linear.NonDynamicallyQuantizableLinear


def is_conv1d(module: nn.Module) -> bool:
    """The Conv1D of transformers: a linear layer that stores its weight as [K, N]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    """An nn.Linear or the Conv1D of transformers."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_plain(module: nn.Module) -> bool:
    """Whether the module computes x W^T + b: nn.Linear, a subclass without a forward of its own, Conv1D, Falcon's."""
    kind = type(module)
    if kind is nn.Linear or is_conv1d(module):
        return True
    falcon = kind.__name__ == "FalconLinear" and kind.__module__ == "transformers.models.falcon.modeling_falcon"
    return issubclass(kind, nn.Linear) and kind is not _READ and (falcon or kind.forward is nn.Linear.forward)


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight [N, K] of a linear layer: a view of a Conv1D's."""
    return module.weight.t() if is_conv1d(module) else module.weight


def frozen_of(module: nn.Module) -> Frozen:
    """The frozen weight of a linear layer, shared, however it is stored.

    It takes nn.Linear, a subclass that computes the same, transformers' Conv1D and FP8Linear, and bitsandbytes'
    Linear4bit and Linear8bitLt. The weights of the last three stand for x W^T with the decoded W.

    Raises TypeError that says why not: another kind of module, a weight that is no plain tensor (sharded, quantised)
    or of another dtype than float32, bfloat16, float16 and float64.
    """
    found = quantized(module)
    if found is not None:
        return found
    if not isinstance(module, nn.Module) or not is_plain(module):
        raise TypeError(
            f"frozen_of: module is a {type(module).__qualname__}; accepted are torch.nn.Linear, its subclasses without "
            "a forward of their own, transformers' Conv1D and FP8Linear, bitsandbytes' Linear4bit and Linear8bitLt"
        )
    if type(module.weight) not in (torch.Tensor, nn.Parameter):
        raise TypeError(f"frozen_of: the weight is a {type(module.weight).__qualname__}, expected a plain tensor")
    return Frozen("dense", (weight_of(module),))
