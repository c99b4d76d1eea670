"""The LoRA update alone, added to the output of a frozen layer whose weight cannot be read.

y = base + scaling * (drop(x) A^T) B^T, where base is the frozen layer's output. The frozen layer has its own backward
pass; this one adds the update's gradient of x, by lora_dx with a weight of 0 rows. Saved for backward: x itself,
s [M, r] and the packed mask.
"""

import torch

from ..ops import _check, philox
from ..ops.lora_da import lora_da
from ..ops.lora_ds_db import lora_ds_db
from ..ops.lora_dx import lora_dx
from ..ops.lora_shrink import lora_shrink
from ._autocast import autocast_lora, without_autocast
from ._first_order import apply_of, first_order, takes_a_function
from ._scaling import scaling_into
from ._still_trains import still_trains


def _forward(base, x, lora_A, lora_B, scaling, p, seed):
    s, mask = lora_shrink(_check.rows("lora_update", "x", x), lora_A, p, seed)
    rows = _check.rows("lora_update", "base", base)
    up = lora_B.to(base.dtype).t()
    s_here = s.to(base.dtype)
    if scaling == 0:  # addmm skips the product then, and loses the NaN of infinity * 0
        y = rows + s_here @ up * scaling
    else:
        y = torch.addmm(rows, s_here, up, alpha=scaling)
    return torch.ops.aten._unsafe_view(y, base.shape), s, mask


class LoRAUpdateFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, base, x, lora_A, lora_B, scaling, p, seed):
        y, s, mask = _forward(base, x, lora_A, lora_B, scaling, p, seed)
        _, need_x, need_A, need_B = ctx.needs_input_grad[:4]
        ctx.save_for_backward(
            x if need_A else None,
            lora_A if need_x else None,
            lora_B if need_x or need_A or need_B else None,
            s if need_x or need_A or need_B else None,
            mask if p > 0 and (need_x or need_A) else None,
        )
        ctx.scaling, ctx.p, ctx.dtype_A, ctx.x_shape = scaling, p, lora_A.dtype, x.shape
        return y

    @staticmethod
    @first_order
    def backward(ctx, saved, grad):
        x, lora_A, lora_B, s, mask = saved
        need_base, need_x, need_A, need_B = ctx.needs_input_grad[:4]
        still_trains("lora_update", "lora_B", lora_B, need_B)
        dX = dA = dB = None
        if need_x or need_A or need_B:
            dY, p = _check.rows("lora_update", "dY", grad), ctx.p
            mask = dY.new_empty(0, 0, dtype=torch.uint8) if mask is None else mask
            dS, dB = lora_ds_db(dY, lora_B, s, ctx.scaling, need_x or need_A, need_B)
            if need_x:
                of_no_rows = dY[:, :0], dY.new_empty(0, lora_A.shape[1])
                dX = lora_dx(*of_no_rows, dS, lora_A, mask, p).view(ctx.x_shape)
            if need_A:
                dA = lora_da(dS, _check.rows("lora_update", "x", x), mask, p, ctx.dtype_A)
        return grad if need_base else None, dX, dA, dB if need_B else None, None, None, None


def lora_update(
    base: torch.Tensor,
    x: torch.Tensor,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    *,
    scaling: float | torch.Tensor = 1.0,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """y = base + scaling * (drop(x) A^T) B^T, differentiable in base, x, lora_A and lora_B.

    LoRA (Hu et al., arXiv:2106.09685) beside a layer whose weight cannot be read. base is not written into.

    Args:
        base: [..., N], what the frozen layer returned for x.
        x: [..., K], of base's dtype: float32, bfloat16, float16 or float64; any strides.
        lora_A, lora_B: [r, K] and [N, r], base's dtype, or float32 over a bfloat16 or float16 base.
        scaling: a number, or a tensor of one.
        dropout_p: in [0, 1); each call draws a mask of its own from torch's generator of x's device.

    Returns:
        y [..., N] in base's dtype.

    Raises:
        ValueError: a shape, a device or dropout_p does not fit; the message names it.
        TypeError: a dtype is not accepted.
        RuntimeError: a kernel forced by `using` cannot run these arguments.
    """
    op, p = "lora_update", float(dropout_p)
    _check.dropout_p(op, p)
    _check.matrix(op, lora_A=lora_A)
    _check.features(op, x, "lora_A", lora_A)
    _check.floating(op, "base", base)
    _check.same_dtype(op, "base", base, x=x)
    expected = (*x.shape[:-1], lora_B.shape[0] if lora_B.dim() == 2 else -1)
    _check.shape(op, "base", base, expected, f"[.., N] for x {tuple(x.shape)} and lora_B {tuple(lora_B.shape)}")
    shape = (lora_B.shape[0], lora_A.shape[0])
    _check.shape(op, "lora_B", lora_B, shape, f"[N, r] for lora_A of shape {tuple(lora_A.shape)}")
    if _check.autocasts(x.device):
        lora_A, lora_B = autocast_lora(base.dtype, lora_A, lora_B)
    _check.adapter_dtype(op, "base", base, "lora_A", lora_A)
    _check.adapter_dtype(op, "base", base, "lora_B", lora_B)
    _check.same_device(op, "base", base, x=x, lora_A=lora_A, lora_B=lora_B)
    scaling, lora_B = scaling_into(op, scaling, lora_B)
    seed = philox.draw_seed(x.device) if p > 0 else None
    with without_autocast(x.device):
        if takes_a_function():
            return apply_of(LoRAUpdateFunction)(base, x, lora_A, lora_B, scaling, p, seed)
        return _forward(base, x, lora_A, lora_B, scaling, p, seed)[0]
