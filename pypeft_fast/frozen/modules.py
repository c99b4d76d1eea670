"""Reads the frozen weight of a module: module -> Frozen, or an error with the reason."""

import torch
from torch import nn

from .operand import Frozen
from .quantized_modules import quantized

# The class of out_proj in nn.MultiheadAttention, which reads the weight of out_proj instead of calling it.
_READ = nn.modules.linear.NonDynamicallyQuantizableLinear


def is_conv1d(module: nn.Module) -> bool:
    """The Conv1D of transformers: a linear layer that stores its weight as [K, N]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    """An nn.Linear or the Conv1D of transformers."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def is_plain(module: nn.Module) -> bool:
    """Whether the module computes x W^T + b: nn.Linear, a subclass without its own forward, Conv1D, FalconLinear."""
    kind = type(module)
    if kind is nn.Linear or is_conv1d(module):
        return True
    falcon = kind.__name__ == "FalconLinear" and kind.__module__ == "transformers.models.falcon.modeling_falcon"
    return issubclass(kind, nn.Linear) and kind is not _READ and (falcon or kind.forward is nn.Linear.forward)


def weight_of(module: nn.Module) -> torch.Tensor:
    """The weight [N, K] of a linear layer; for a Conv1D a transposed view."""
    return module.weight.t() if is_conv1d(module) else module.weight


def frozen_of(module: nn.Module) -> Frozen:
    """The frozen weight of a linear layer in its stored format, shared, not copied.

    Accepts nn.Linear, a subclass that computes the same, transformers' Conv1D and FP8Linear, and bitsandbytes'
    Linear4bit and Linear8bitLt. For the last three the product is x W^T with the decoded W.

    Raises TypeError with the reason: another kind of module, a weight that is not a plain tensor (sharded, quantised)
    or whose dtype is not float32, bfloat16, float16 or float64.
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
