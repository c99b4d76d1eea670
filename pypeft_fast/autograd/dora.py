"""DoRA over a frozen linear layer, differentiable: the rows of W + scaling * B A, rescaled to trained norms.

With g = magnitude / |W + scaling B A| (a constant of the graph, section 4.3 of Liu et al., arXiv:2402.09353) and x' =
drop(x), the layer is y = g * z + b + (x - x') W^T, z = x' W^T + scaling (x' A^T) B^T; without dropout the last term
vanishes, and the forward pass is lora_shrink and lora_linear. Saved for backward: x itself, s [M, r], the packed mask,
z and g; not W + scaling B A, and not x'.
"""

import torch

from ..frozen.operand import Frozen, crossed, operand, stored
from ..ops import _check, philox
from ..ops._scale import scaled
from ..ops.ia3_dx_dl import ia3_dx_dl
from ..ops.ia3_linear import ia3_linear as ia3_linear_op
from ..ops.lora_da import lora_da
from ..ops.lora_ds_db import lora_ds_db
from ..ops.lora_dx import lora_dx
from ..ops.lora_linear import lora_linear as lora_linear_op
from ..ops.lora_shrink import lora_shrink
from ._autocast import autocast_as_linear, autocast_factor, autocast_lora
from ._first_order import apply_of, first_order, takes_a_function
from ._scaling import scaling_into
from ._shaped import shaped
from ._still_trains import still_trains
from .dora_norm import dora_norm, row_scale


def _forward(x, weight, bias, lora_A, lora_B, g, scaling, p, seed, need_z, *its):
    rows = _check.rows("dora_linear", "x", x)
    s, mask = lora_shrink(rows, lora_A, p, seed)
    kept = philox.dropped(rows, mask, p)
    y, z = lora_linear_op(kept, weight, bias, s, lora_B, scaling, g, need_z, *crossed(*its))
    if p > 0:
        y = _plus_product(y, rows - kept, weight, its)
    return shaped(y, x), s, mask, z


def _plus_product(y, x, weight, its):
    """y + x W^T. A quantised weight goes through ia3_linear with factors 1, so it is never dequantised whole."""
    if not its:
        return torch.addmm(y, x, weight.t())
    return y + ia3_linear_op(x, weight, None, x.new_ones(y.shape[1]), False, False, *crossed(*its))[0]


def _plus_gradient(dX, dY, weight, its):
    """dX + dY W."""
    if not its:
        return torch.addmm(dX, dY, weight)
    no_update, no_A, no_mask = dY.new_zeros(dY.shape[0], 1), dX.new_zeros(1, dX.shape[1]), dY.new_empty(0, 0).byte()
    return dX + lora_dx(dY, weight, no_update, no_A, no_mask, 0.0, *crossed(*its))


class DoRALinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, lora_A, lora_B, magnitude, norm, scaling, p, seed, *its):
        g = row_scale(magnitude, norm)
        need_x, need_weight, _, need_A, need_B, need_magnitude = ctx.needs_input_grad[:6]
        y, s, mask, z = _forward(x, weight, bias, lora_A, lora_B, g, scaling, p, seed, need_magnitude, *its)
        need_dS = need_x or need_A
        ctx.save_for_backward(
            x if need_A or need_weight else None,
            weight if need_x else None,
            lora_A if need_x else None,
            lora_B if need_dS or need_B else None,
            s if need_dS or need_B else None,
            mask if p > 0 and (need_dS or need_weight) else None,
            z if need_magnitude else None,
            g,
            norm if need_magnitude else None,
            *(its[1:] if need_x else ()),
        )
        ctx.format, ctx.count = its[:1] if need_x else (), len(its)
        ctx.scaling, ctx.p = scaling, p
        ctx.dtype_A, ctx.dtype_magnitude = lora_A.dtype, magnitude.dtype
        ctx.x_shape = x.shape
        return y

    @staticmethod
    @first_order
    def backward(ctx, saved, grad):
        (x, weight, lora_A, lora_B, s, mask, z, g, norm), scales = saved[:9], saved[9:]
        need_x, need_weight, need_bias, need_A, need_B, need_magnitude = ctx.needs_input_grad[:6]
        still_trains("dora_linear", "lora_B", lora_B, need_B)
        p = ctx.p
        dY = _check.rows("dora_linear", "dY", grad)
        mask = dY.new_empty(0, 0, dtype=torch.uint8) if mask is None else mask
        dX = dW = dA = dB = None
        dZ = None
        if need_x and p == 0 and lora_B.dtype == dY.dtype != torch.float16:
            # B is no finer than dZ = g * dY, which dX needs. In float16 dZ may overflow where scaling * dZ does not.
            dZ = scaled(dY, g.to(dY.dtype) if ctx.dtype_magnitude == dY.dtype else g)
            dS, dB = lora_ds_db(dZ, lora_B, s, ctx.scaling, True, need_B)
            dX = lora_dx(dZ, weight, dS, lora_A, mask, 0.0, *crossed(*ctx.format, *scales)).view(ctx.x_shape)
        elif need_x or need_A or need_B:
            # dZ B = dY (g * B), and dZ^T s = g * (dY^T s): the smaller matrices take the factor
            factor = g.to(lora_B.dtype)[:, None]
            scaled_B = factor * lora_B
            dS, dB = lora_ds_db(dY, scaled_B, s, ctx.scaling, need_x or need_A, need_B)
            if need_B:  # without rows dB is 0 for any g
                dB = factor * dB if dY.shape[0] else dB
        if need_x and dZ is None:
            # One pass over dY, where the magnitude is no finer than dY itself.
            factor = g.to(dY.dtype) if ctx.dtype_magnitude == dY.dtype else g
            dX = _dx(dY, weight, dS, lora_A, mask, p, factor, *ctx.format, *scales).view(ctx.x_shape)
        if x is not None:
            rows = _check.rows("dora_linear", "x", x)
            dA = lora_da(dS, rows, mask, p, ctx.dtype_A) if need_A else None
            dW = _dw(dY, rows, mask, p, g) if need_weight else None
        db = dY.sum(0) if need_bias else None
        dmagnitude = None
        if need_magnitude:  # the column sums of dY * z, as dl of IA3; the weight is not read
            _, dg = ia3_dx_dl(dY, dY.new_empty(dY.shape[1], 0), g, z, False, False, True)
            dmagnitude = (dg / norm).masked_fill(norm == 0, 0.0).to(ctx.dtype_magnitude)
        return dX, dW, db, dA, dB if need_B else None, dmagnitude, *(None,) * (4 + ctx.count)


def _dx(dY, weight, dS, lora_A, mask, p, g, *its):
    """From y = x W^T + x' ((g - 1) * W)^T + s (..): dX = dY W + drop'(((g - 1) * dY) W + dS A)."""
    unmasked = dY.new_empty(0, 0, dtype=torch.uint8)
    if p == 0:
        return lora_dx(scaled(dY, g), weight, dS, lora_A, unmasked, 0.0, *crossed(*its))
    through_kept = lora_dx(scaled(dY, g - 1), weight, dS, lora_A, unmasked, 0.0, *crossed(*its))
    return _plus_gradient(philox.dropped(through_kept, mask, p), dY, weight, its)


def _dw(dY, rows, mask, p, g):
    dZ = scaled(dY, g)
    kept = philox.dropped(rows, mask, p)
    return dZ.t() @ kept if p == 0 else torch.addmm(dZ.t() @ kept, dY.t(), rows - kept)


def dora_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Frozen,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    magnitude: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scaling: float | torch.Tensor = 1.0,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """y = magnitude * (x (W + scaling B A)^T) / |W + scaling B A| + b, the length taken of every row of the weight.

    DoRA (Liu et al., arXiv:2402.09353), as PEFT computes it: differentiable in x, lora_A, lora_B, magnitude, bias and
    weight, with the length a constant of the graph. Dropout replaces x by x' = drop(x) wherever the adapter changes
    the frozen layer: y = x W^T + b + (g - 1) * (x' W^T) + g * scaling (x' A^T) B^T, g = magnitude / length.

    Args:
        x: [..., K], float32, bfloat16, float16 or float64, any strides.
        weight: [N, K], x's dtype, any strides; need not require grad. Or a `Frozen`.
        lora_A, lora_B: [r, K] and [N, r], x's dtype, or float32 over a bfloat16 or float16 x.
        magnitude: [N] in x's dtype, or float32 over a bfloat16 or float16 x.
        bias: [N] in x's dtype, or None.
        scaling: lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA (arXiv:2312.03732); a number, or a tensor of one,
            which may require grad.
        dropout_p: in [0, 1); each call draws a mask of its own from torch's generator of x's device.
        training: dropout applies only if true.
        generator: a torch.Generator to draw the mask's seed from instead; torch.compile breaks its graph at one, as at
            that of torch.rand.

    Returns:
        y [..., N] in x's dtype. Under autocast x, weight and bias are cast first, as in nn.Linear, and so are lora_A
        and lora_B in half precision; the length is that of the weight as given.

    Raises:
        ValueError: a shape, a device, the rank or dropout_p does not fit; the message names it.
        TypeError: an argument is of another type, or a dtype is not accepted.
        RuntimeError: a kernel forced by `using` cannot run these arguments.
    """
    given = dict(x=x, weight=weight, lora_A=lora_A, lora_B=lora_B, magnitude=magnitude, bias=bias)
    _check.tensors("dora_linear", ("bias",), **given)
    weight = operand(weight)
    p = _check.number("dora_linear", "dropout_p", dropout_p)
    _check.generator("dora_linear", generator)
    _check_arguments(x, weight, lora_A, lora_B, magnitude, bias, p)
    scaling, lora_B = scaling_into("dora_linear", scaling, lora_B)
    norm = dora_norm(weight, lora_A, lora_B, scaling)
    if _check.autocasts(x.device):
        x, weight, bias = autocast_as_linear(x, weight, bias)
        lora_A, lora_B = autocast_lora(x.dtype, lora_A, lora_B)
        magnitude = autocast_factor(x, magnitude)
    _check.floating("dora_linear", "x", x)
    _check.same_dtype("dora_linear", "x", x, weight=weight, bias=bias)
    _check.adapter_dtype("dora_linear", "x", x, "magnitude", magnitude)
    p = p if training else 0.0
    seed = philox.draw_seed(x.device, generator) if p > 0 else None
    weight, its = stored(weight)
    if takes_a_function():
        return apply_of(DoRALinearFunction)(x, weight, bias, lora_A, lora_B, magnitude, norm, scaling, p, seed, *its)
    return _forward(x, weight, bias, lora_A, lora_B, row_scale(magnitude, norm), scaling, p, seed, False, *its)[0]


def _check_arguments(x, weight, lora_A, lora_B, magnitude, bias, p):
    op = "dora_linear"
    _check.dropout_p(op, p)
    _check.matrix(op, weight=weight, lora_A=lora_A)
    _check.features(op, x, "weight", weight)
    _check.rank(op, lora_A)
    r, K = lora_A.shape[0], weight.shape[1]
    _check.shape(op, "lora_A", lora_A, (r, K), f"[r, K] for weight of shape {tuple(weight.shape)}")
    _check.floating(op, "weight", weight)
    _check.shape(op, "lora_B", lora_B, (weight.shape[0], r), f"[N, r] for weight of shape {tuple(weight.shape)}")
    _check.shape(op, "magnitude", magnitude, weight.shape[:1], f"[N] for weight of shape {tuple(weight.shape)}")
    if bias is not None:
        _check.shape(op, "bias", bias, weight.shape[:1], f"[N] for weight of shape {tuple(weight.shape)}")
    _check.same_device(op, "x", x, weight=weight, bias=bias, lora_A=lora_A, lora_B=lora_B, magnitude=magnitude)
