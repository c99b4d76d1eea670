"""BitFit over a frozen linear layer: backward computes dX and the column sum of dY, and saves no activation."""

import torch
import torch.nn.functional as F

from ..ops import _check
from ._autocast import autocast_as_linear, without_autocast
from ._first_order import apply_of, first_order, takes_a_function


class BitFitLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):
        need_x = ctx.needs_input_grad[0]
        ctx.save_for_backward(weight if need_x else None)
        ctx.dtype = bias.dtype
        return F.linear(x, weight, bias.to(x.dtype)).detach()

    @staticmethod
    @first_order
    def backward(ctx, saved, dY):
        (weight,) = saved
        dX = dY @ weight if weight is not None else None
        db = None
        if ctx.needs_input_grad[2]:
            wide = torch.promote_types(dY.dtype, torch.float32)
            db = _check.rows("bitfit_linear", "dY", dY).sum(0, dtype=wide).to(ctx.dtype)
        return dX, None, db


def bitfit_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """y = x W^T + b, differentiable in x and the bias alone (Ben Zaken et al., arXiv:2106.10199).

    x [..., K]; weight [N, K] in x's dtype; bias [N] in any floating dtype, in which its gradient is. Under autocast x
    and weight are cast first, as in nn.Linear. ValueError: a shape does not fit, or the weight requires grad.
    """
    _check.tensors("bitfit_linear", x=x, weight=weight, bias=bias)
    _check.matrix("bitfit_linear", weight=weight)
    _check.features("bitfit_linear", x, "weight", weight)
    _check.shape("bitfit_linear", "bias", bias, weight.shape[:1], f"[N] for weight of shape {tuple(weight.shape)}")
    if weight.requires_grad:
        raise ValueError("bitfit_linear: weight requires grad, which this function does not compute; freeze it")
    x, weight = autocast_as_linear(x, weight)
    if x.dtype != weight.dtype:
        raise TypeError(f"bitfit_linear: weight is {weight.dtype}, x is {x.dtype}; they must agree")
    with without_autocast(x.device):
        if takes_a_function():
            return apply_of(BitFitLinearFunction)(x, weight, bias)
        y = F.linear(x, weight, bias.to(x.dtype))
        return y if torch.is_grad_enabled() else y.detach()  # of a single row it is a view
