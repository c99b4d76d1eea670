"""Several LoRA adapters over one frozen linear layer at once, each with dropout of its own, differentiable.

With the adapters' ranks stacked it is one LoRA layer of R, the sum of the ranks: s = [drop_1(x) A_1^T | ..] [M, R] and
B = [scaling_1 B_1 | ..] [N, R]. So W, x, y and dY are read as for one adapter; only the products with A, which meet
another mask each, are one for each. Saved for backward: x itself, s and the packed masks.
"""

import torch

from .._dispatcher import PLAIN
from ..frozen.operand import Frozen, crossed, is_stored, operand, stored
from ..ops import _check, philox
from ..ops.lora_da import lora_da
from ..ops.lora_ds_db import lora_ds_db
from ..ops.lora_dx import lora_dx
from ..ops.lora_linear import lora_linear as lora_linear_op
from ..ops.lora_shrink import lora_shrink
from ._autocast import autocast_as_linear, autocast_lora, without_autocast
from ._first_order import apply_of, first_order, takes_a_function
from ._shaped import shaped
from ._still_trains import still_trains

NAME = "lora_sum_linear"


def _forward(x, weight, bias, B, seeds, ps, lora_A, its):
    rows = _check.rows(NAME, "x", x)
    its_seeds = (seeds[i : i + 1] if p > 0 else None for i, p in enumerate(ps))
    shrunk = [lora_shrink(rows, A, p, seed) for A, p, seed in zip(lora_A, ps, its_seeds, strict=True)]
    s = torch.cat([part for part, _ in shrunk], 1)
    y, _ = lora_linear_op(rows, weight, bias, s, B, 1.0, None, False, *(its and crossed(*its)))
    return shaped(y, x), s, [mask for _, mask in shrunk]


class LoRASumFunction(torch.autograd.Function):
    """forward(x, weight, bias, B, seeds, ps, n, *A, *its): B [N, R] with the scalings in it, n matrices A, and of a
    quantised weight what `stored` gives beside its first tensor."""

    @staticmethod
    def forward(ctx, x, weight, bias, B, seeds, ps, n, *rest):
        lora_A, its = rest[:n], rest[n:]
        y, s, masks = _forward(x, weight, bias, B, seeds, ps, lora_A, its)
        need_x, need_weight, _, need_B = ctx.needs_input_grad[:4]
        need_A = any(ctx.needs_input_grad[7 : 7 + n])
        adapts = need_x or need_A or need_B
        ctx.save_for_backward(
            x if need_A or need_weight else None,
            weight if need_x else None,
            B if adapts else None,
            s if adapts else None,
            *(A if need_x or need_A else None for A in lora_A),
            *(mask if need_x or need_A else None for mask in masks),
            *(its[1:] if need_x else ()),
        )
        ctx.format, ctx.count = its[:1] if need_x else (), len(its)
        ctx.ps, ctx.n, ctx.x_shape = ps, n, x.shape
        ctx.ranks, ctx.dtypes = [A.shape[0] for A in lora_A], [A.dtype for A in lora_A]
        return y

    @staticmethod
    @first_order
    def backward(ctx, saved, grad):
        n, ps = ctx.n, ctx.ps
        (x, weight, B, s), lora_A = saved[:4], saved[4 : 4 + n]
        masks, scales = saved[4 + n : 4 + 2 * n], saved[4 + 2 * n :]
        need_x, need_weight, need_bias, need_B = ctx.needs_input_grad[:4]
        needs_A = ctx.needs_input_grad[7 : 7 + n]
        for i, A in enumerate(lora_A):
            still_trains(NAME, f"lora_A[{i}]", A, needs_A[i])
        dY = _check.rows(NAME, "dY", grad)
        rows = None if x is None else _check.rows(NAME, "x", x)
        dX = dB = None
        dA = [None] * n
        if need_x or any(needs_A) or need_B:
            dS, dB = lora_ds_db(dY, B, s, 1.0, need_x or any(needs_A), need_B)
            parts = dS.split(ctx.ranks, 1) if need_x or any(needs_A) else ()
        if need_x:
            of_no_rows = dY[:, :0], dY.new_empty(0, lora_A[0].shape[1])
            for i, (A, mask, p) in enumerate(zip(lora_A, masks, ps, strict=True)):
                its = (*of_no_rows, parts[i], A, mask, p) if i else (dY, weight, parts[i], A, mask, p)
                its = its if i else (*its, *crossed(*ctx.format, *scales))
                dX = lora_dx(*its) if dX is None else dX + lora_dx(*its)
            dX = dX.view(ctx.x_shape)
        for i, needed in enumerate(needs_A):
            if needed:
                dA[i] = lora_da(parts[i], rows, masks[i], ps[i], ctx.dtypes[i])
        dW = dY.t() @ rows if need_weight else None
        db = dY.sum(0) if need_bias else None
        return dX, dW, db, dB if need_B else None, None, None, None, *dA, *(None,) * ctx.count


def lora_sum_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Frozen,
    lora_As: list[torch.Tensor],
    lora_Bs: list[torch.Tensor],
    bias: torch.Tensor | None = None,
    *,
    scalings: list[float | torch.Tensor],
    dropout_ps: list[float],
) -> torch.Tensor:
    """y = x W^T + b + sum of scaling_i * (drop_i(x) A_i^T) B_i^T, differentiable in all tensors.

    LoRA (Hu et al., arXiv:2106.09685), several adapters whose updates add up, as PEFT's list of active adapters.

    Args:
        x: [..., K]; weight: [N, K] in x's dtype, or a `Frozen`; bias: [N] or None, as in `lora_linear`.
        lora_As, lora_Bs: n tensors [r_i, K] and n tensors [N, r_i], x's dtype or float32 over a half-precision x.
        scalings: n numbers, or tensors of one. dropout_ps: n rates in [0, 1); each draws a mask of its own.

    Returns:
        y [..., N] in x's dtype. Under autocast x, weight, bias and adapters are cast as in `lora_linear`.

    Raises:
        ValueError, TypeError: a shape, a device, a dtype or a rate does not fit; the message names it.
        RuntimeError: a kernel forced by `using` cannot run these arguments.
    """
    if type(weight) not in PLAIN:
        weight = operand(weight)
    n = len(lora_As)
    if not n == len(lora_Bs) == len(scalings) == len(dropout_ps) or n == 0:
        raise ValueError(
            f"{NAME}: lora_As, lora_Bs, scalings and dropout_ps have {n}, {len(lora_Bs)}, {len(scalings)} and "
            f"{len(dropout_ps)} elements; give one of each for every adapter, at least one"
        )
    for p in dropout_ps:
        _check.dropout_p(NAME, p)
    for i, (A, B) in enumerate(zip(lora_As, lora_Bs, strict=True)):
        _check.matrix(NAME, **{f"lora_As[{i}]": A})
        shape = weight.shape[0], A.shape[0]
        _check.shape(NAME, f"lora_Bs[{i}]", B, shape, f"[N, r] for lora_As[{i}] of shape {tuple(A.shape)}")
    if _check.autocasts(x.device):
        x, weight, bias = autocast_as_linear(x, weight, bias)
        lora_As, lora_Bs = autocast_lora(x.dtype, *lora_As), autocast_lora(x.dtype, *lora_Bs)
    if type(weight) not in PLAIN and is_stored(weight):
        _check.frozen(NAME, x, weight)
    with without_autocast(x.device):
        # In float32 for a half-precision B: what is scaled is not rounded before it is used.
        wide = [torch.promote_types(B.dtype, torch.float32) for B in lora_Bs]
        B = torch.cat([B.to(w) * scaling for B, w, scaling in zip(lora_Bs, wide, scalings, strict=True)], 1)
        seeds = philox.draw_seed(x.device, None, n) if any(dropout_ps) else None
        ps = tuple(float(p) for p in dropout_ps)
        stored_weight, its = (weight, ()) if type(weight) in PLAIN else stored(weight)
        if takes_a_function():
            return apply_of(LoRASumFunction)(x, stored_weight, bias, B, seeds, ps, n, *lora_As, *its)
        return _forward(x, stored_weight, bias, B, seeds, ps, lora_As, its)[0]
