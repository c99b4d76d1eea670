"""IA3 over a frozen linear layer, differentiable: one op forward, one backward.

Saved for backward, besides the weight and l: z = x W^T + b where l multiplies the output, x itself where it multiplies
the input, and neither if l needs no gradient.
"""

import torch

from ..frozen.operand import Frozen, crossed, dense, is_stored, operand, stored
from ..ops import _check
from ..ops._scale import scaled
from ..ops.ia3_dx_dl import ia3_dx_dl
from ..ops.ia3_linear import ia3_linear as ia3_linear_op
from ._autocast import autocast_as_linear, autocast_factor
from ._first_order import apply_of, first_order, takes_a_function
from ._shaped import shaped
from ._still_trains import still_trains


def _forward(x, weight, bias, ia3_l, feedforward, need_z, *its):
    rows = _check.rows("ia3_linear", "x", x)
    y, z = ia3_linear_op(rows, weight, bias, ia3_l, feedforward, need_z, *crossed(*its))
    return shaped(y, x), z


class IA3LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, ia3_l, feedforward, *its):
        need_x, need_weight, need_bias, need_l = ctx.needs_input_grad[:4]
        need_z = need_l and not feedforward
        y, z = _forward(x, weight, bias, ia3_l, feedforward, need_z, *its)
        need_W = need_x or (need_l and feedforward)
        ctx.save_for_backward(
            x if need_weight or (need_l and feedforward) else None,
            weight if need_W else None,
            ia3_l if need_x or need_weight or need_l or (need_bias and not feedforward) else None,
            z if need_z else None,
            *(its[1:] if need_W else ()),
        )
        ctx.format, ctx.count = its[:1] if need_W else (), len(its)
        ctx.feedforward, ctx.x_shape = feedforward, x.shape
        return y

    @staticmethod
    @first_order
    def backward(ctx, saved, grad):
        (x, weight, ia3_l, z), scales = saved[:4], saved[4:]
        need_x, need_weight, need_bias, need_l = ctx.needs_input_grad[:4]
        still_trains("ia3_linear", "ia3_l", ia3_l, need_l)
        feedforward, dY = ctx.feedforward, _check.rows("ia3_linear", "dY", grad)
        rows = None if x is None else _check.rows("ia3_linear", "x", x)
        dX = dW = db = dl = None
        if need_x or need_l:
            if weight is None:  # no columns: only dl is computed, without the weight
                weight = dY.new_empty(dY.shape[1], 0)
            factor = (rows if feedforward else z) if need_l else dY.new_empty(0, 0)
            options = feedforward, need_x, need_l
            dX, dl = ia3_dx_dl(dY, weight, ia3_l, factor, *options, *crossed(*ctx.format, *scales))
            dX, dl = dX.view(ctx.x_shape) if need_x else None, dl if need_l else None
        if need_weight or need_bias:
            dZ = dY if feedforward else scaled(dY, ia3_l)
            dW = dZ.t() @ (scaled(rows, ia3_l) if feedforward else rows) if need_weight else None
            db = dZ.sum(0) if need_bias else None
        return dX, dW, db, dl, *(None,) * (1 + ctx.count)


def ia3_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Frozen,
    ia3_l: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    feedforward: bool = False,
) -> torch.Tensor:
    """y = (x W^T + b) * l, or with feedforward y = (x * l) W^T + b; differentiable in x, ia3_l, weight and bias.

    IA3 (Liu et al., arXiv:2205.05638) over a linear layer: one learned factor for each of its outputs, as for keys and
    values, or for each of its inputs, as for the second layer of a feedforward block.

    Args:
        x: [..., K], float32, bfloat16, float16 or float64, any strides.
        weight: [N, K], x's dtype, any strides; need not require grad. Or a `Frozen`.
        ia3_l: l, [N], or [K] with feedforward; x's dtype, or float32 over a bfloat16 or float16 x.
        bias: [N] in x's dtype, or None.
        feedforward: whether l multiplies the inputs.

    Returns:
        y [..., N] in x's dtype. Under autocast x, weight and bias are cast first, as in nn.Linear, and ia3_l may
        be of either half-precision type.

    Raises:
        ValueError: a shape or a device does not fit; the message names it.
        TypeError: an argument is of another type, or a dtype is not accepted.
        RuntimeError: a kernel forced by `using` cannot run these arguments.
    """
    _check.tensors("ia3_linear", ("bias",), x=x, weight=weight, ia3_l=ia3_l, bias=bias)
    weight = operand(weight)
    if x.dim() < 1 or weight.dim() != 2:
        raise ValueError(
            f"ia3_linear: x [..., K] and weight [N, K] do not fit: x {tuple(x.shape)}, weight {tuple(weight.shape)}"
        )
    x, weight, bias = autocast_as_linear(x, weight, bias)
    if is_stored(weight) and weight.shape[0] == 1:  # two weights per byte: the backward op cannot know K
        weight = dense(weight)
    if is_stored(weight):
        _check.frozen("ia3_linear", x, weight)
        _check.ia3_l("ia3_linear", ia3_l, weight, feedforward)
    ia3_l = autocast_factor(x, ia3_l)
    if takes_a_function():
        weight, its = stored(weight)
        return apply_of(IA3LinearFunction)(x, weight, bias, ia3_l, bool(feedforward), *its)
    return _forward(x, weight, bias, ia3_l, bool(feedforward), False)[0]
