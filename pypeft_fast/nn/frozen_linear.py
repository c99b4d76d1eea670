"""The frozen layer alone."""

import torch
import torch.nn.functional as F

from ..autograd.ia3 import ia3_linear
from ..frozen.operand import Frozen


def linear(x: torch.Tensor, weight: torch.Tensor | Frozen, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x W^T + b. A quantised weight goes through ia3_linear with factors 1, so it is never dequantised whole."""
    if isinstance(weight, torch.Tensor):
        return F.linear(x, weight, bias)
    return ia3_linear(x, weight, x.new_ones(weight.shape[0]), bias)
