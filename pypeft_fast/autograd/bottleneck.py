"""A bottleneck adapter as one function: layer norm, down, activation, dropout, up, residual.

Saved for backward: x, the bottleneck z [M, m] and its packed dropout mask; with layer norm also the mean and deviation
of every row. The normalised x and the activation are recomputed. With dropout, lora_shrink computes drop(f(z)) U^T and
draws the mask: it is drop(x) A^T with f(z) as x and U as A.
"""

import torch
import torch.nn.functional as F

from ..ops import _check, philox
from ..ops.lora_da import lora_da
from ..ops.lora_shrink import lora_shrink
from ._autocast import autocast_as_linear, without_autocast
from ._first_order import apply_of, first_order, takes_a_function
from ._scaling import scaling_into
from ._shaped import shaped

_aten = torch.ops.aten
# name: (the function of z, its gradient from (the gradient of its result, z))
ACTIVATIONS = {
    "relu": (F.relu, lambda grad, z: _aten.threshold_backward(grad, z, 0)),
    "silu": (F.silu, _aten.silu_backward),
    "gelu": (F.gelu, _aten.gelu_backward),
    "tanh": (torch.tanh, lambda grad, z: _aten.tanh_backward(grad, torch.tanh(z))),
}
EPS = 1e-5


def _forward(x, residual, down, down_bias, up, up_bias, norm_weight, norm_bias, activation, scaling, p, seed):
    """y, z, mask, and the mean and deviation of every row."""
    rows, dtype = _rows(x), x.dtype
    normed, mean, deviation = rows, None, None
    if norm_weight is not None:
        normed, mean, deviation = _normalise(rows, norm_weight.to(dtype), norm_bias.to(dtype))
    z = torch.addmm(down_bias.to(dtype), normed, down.to(dtype).t())
    inner, mask = ACTIVATIONS[activation][0](z), None
    y = _rows(x if residual is None else residual)
    if p > 0:
        update, mask = lora_shrink(inner, up.to(dtype), p, seed)
        y = y + scaling * up_bias.to(dtype)
    else:
        update = torch.addmm(up_bias.to(dtype), inner, up.to(dtype).t())
    return shaped(torch.add(y, update, alpha=scaling), x), z, mask, mean, deviation


class BottleneckFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, residual, down, down_bias, up, up_bias, norm_weight, norm_bias, activation, scaling, p, seed):
        norms = norm_weight, norm_bias
        y, z, mask, mean, deviation = _forward(
            x, residual, down, down_bias, up, up_bias, *norms, activation, scaling, p, seed
        )
        ctx.save_for_backward(x, z, mask, mean, deviation, down, up, norm_weight, norm_bias)
        ctx.activation, ctx.scaling, ctx.p, ctx.own_residual = activation, scaling, p, residual is None
        ctx.dtypes = down_bias.dtype, up_bias.dtype
        return y

    @staticmethod
    @first_order
    def backward(ctx, saved, grad):
        x, z, mask, mean, deviation, down, up, norm_weight, norm_bias = saved
        need_x, need_residual = ctx.needs_input_grad[:2]
        rows, dtype, dY, p = _rows(x), x.dtype, _rows(grad), ctx.p
        normed = rows
        if norm_weight is not None:
            normed = _normalise(rows, norm_weight.to(dtype), norm_bias.to(dtype))[0]
        function, derivative = ACTIVATIONS[ctx.activation]
        inner = function(z)
        d_up = lora_da(dY, inner, mask, p, dtype) if p > 0 else dY.t() @ inner
        d_kept = (dY @ up.to(dtype)) * ctx.scaling
        dz = derivative(philox.dropped(d_kept, mask, p), z)
        d_up, d_down = d_up * ctx.scaling, dz.t() @ normed
        d_up_bias, d_down_bias = _column_sum(dY) * ctx.scaling, _column_sum(dz)
        d_normed = dz @ down.to(dtype) if need_x or norm_weight is not None else None
        d_norm_weight = d_norm_bias = None
        if norm_weight is not None:
            d_normed, d_norm_weight, d_norm_bias = _aten.native_layer_norm_backward(
                d_normed, rows, rows.shape[-1:], mean, deviation, norm_weight.to(dtype), norm_bias.to(dtype),
                [need_x, True, True],
            )  # fmt: skip
            d_norm_weight, d_norm_bias = d_norm_weight.to(norm_weight.dtype), d_norm_bias.to(norm_bias.dtype)
        dX = None
        if need_x:
            dX = (d_normed + dY if ctx.own_residual else d_normed).view(x.shape)
        return (
            dX, grad if need_residual else None, d_down.to(down.dtype), d_down_bias.to(ctx.dtypes[0]),
            d_up.to(up.dtype), d_up_bias.to(ctx.dtypes[1]), d_norm_weight, d_norm_bias, None, None, None, None,
        )  # fmt: skip


def _rows(tensor):
    return _check.rows("bottleneck", "x", tensor)


def _normalise(rows, weight, bias):
    return torch.native_layer_norm(rows, rows.shape[-1:], weight, bias, EPS)


def _column_sum(rows):
    return rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))


def check_activation(function, activation) -> None:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"{function}: activation={activation!r} must be one of {', '.join(ACTIVATIONS)}")


def bottleneck(
    x: torch.Tensor,
    down: torch.Tensor,
    down_bias: torch.Tensor,
    up: torch.Tensor,
    up_bias: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    norm_weight: torch.Tensor | None = None,
    norm_bias: torch.Tensor | None = None,
    activation: str = "relu",
    scaling: float | torch.Tensor = 1.0,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """y = residual + scaling * (drop(f(norm(x) D^T + d)) U^T + u), differentiable in every tensor.

    Bottleneck adapters: Houlsby et al., arXiv:1902.00751; Pfeiffer et al., arXiv:2005.00247; in parallel to a layer,
    He et al., arXiv:2110.04366.

    Args:
        x: [..., K]; residual: [..., N], or None for x itself (then N = K).
        down, up: D [m, K] and U [N, m], with biases d [m] and u [N]; x's dtype, or float32 over a half-precision x.
        norm_weight, norm_bias: [K] of a layer norm of x, or both None.
        scaling: a number, or a tensor of one, which may require grad.
        activation: f: "relu", "silu", "gelu" or "tanh".
        dropout_p: in [0, 1), of the bottleneck's elements, only if training; generator: a torch.Generator for it.

    Raises ValueError if a shape, the activation or dropout_p does not fit, TypeError if an argument is of another type;
    the message names it.
    """
    optional = dict(residual=residual, norm_weight=norm_weight, norm_bias=norm_bias)
    _check.tensors("bottleneck", optional, x=x, down=down, down_bias=down_bias, up=up, up_bias=up_bias, **optional)
    p = _check.number("bottleneck", "dropout_p", dropout_p)
    _check.dropout_p("bottleneck", p)
    check_activation("bottleneck", activation)
    _check.generator("bottleneck", generator)
    _check.matrix("bottleneck", down=down, up=up)
    _check.features("bottleneck", x, "down", down)
    added = x if residual is None else residual
    if up.shape[1] != down.shape[0] or added.shape != (*x.shape[:-1], up.shape[0]):
        raise ValueError(
            f"bottleneck: x [..., K], down [m, K], up [N, m] and residual [..., N] do not fit: x {tuple(x.shape)}, "
            f"down {tuple(down.shape)}, up {tuple(up.shape)}, residual {tuple(added.shape)}"
        )
    _check.shape("bottleneck", "down_bias", down_bias, down.shape[:1], f"[m] for down of shape {tuple(down.shape)}")
    _check.shape("bottleneck", "up_bias", up_bias, up.shape[:1], f"[N] for up of shape {tuple(up.shape)}")
    if (norm_weight is None) != (norm_bias is None):
        raise ValueError("bottleneck: one of norm_weight and norm_bias is None; give both or neither")
    if norm_weight is not None:
        for name, value in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
            _check.shape("bottleneck", name, value, x.shape[-1:], f"[K] for x of shape {tuple(x.shape)}")
    scaling, up, up_bias = scaling_into("bottleneck", scaling, up, up_bias)
    x, residual = autocast_as_linear(x, residual)
    p = p if training else 0.0
    seed = philox.draw_seed(x.device, generator) if p > 0 else None
    with without_autocast(x.device):
        parameters = down, down_bias, up, up_bias, norm_weight, norm_bias
        if takes_a_function():
            return apply_of(BottleneckFunction)(x, residual, *parameters, activation, scaling, p, seed)
        return _forward(x, residual, *parameters, activation, scaling, p, seed)[0]
