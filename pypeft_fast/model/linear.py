"""Which modules are linear layers, and their weight as [N, K] whatever way they store it."""

from torch import nn


def is_conv1d(module) -> bool:
    """The Conv1D of transformers: a linear layer that stores its weight as [K, N]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def is_linear(module) -> bool:
    """An nn.Linear or the Conv1D of transformers."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def weight_of(module):
    """The weight [N, K] of a linear layer: a view of a Conv1D's."""
    return module.weight.t() if is_conv1d(module) else module.weight
