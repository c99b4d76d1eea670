"""LoRA over a frozen linear layer, differentiable: one op each way.

Saved for backward: x itself, s [M, r] and the packed mask (one bit an element). Never a dropped, cast or copied x.
"""

import torch
from torch.compiler import is_compiling

from .._dispatcher import PLAIN
from .._op import DENSE
from ..frozen.operand import Frozen, crossed, is_stored, operand, stored
from ..ops import _check, philox
from ..ops.lora_backward import lora_backward
from ..ops.lora_forward import lora_forward
from ._autocast import autocast_as_linear, autocast_lora
from ._first_order import apply_of, first_order, takes_a_function
from ._scaling import scaling_into
from ._still_trains import still_trains


class LoRALinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, lora_A, lora_B, scaling, p, seed, *its):
        y, s, mask = lora_forward(x, weight, bias, lora_A, lora_B, scaling, p, seed, *(its and crossed(*its)))
        need_x, need_weight, _, need_A, need_B = ctx.needs_input_grad[:5]
        needed = needed_backward(weight, lora_A, lora_B, s, mask if p > 0 else None, need_x, need_A, need_B)
        ctx.save_for_backward(x if need_A or need_weight else None, *needed, *(its[1:] if need_x else ()))
        ctx.format, ctx.count = its[:1] if need_x else (), len(its)
        ctx.scaling, ctx.p, ctx.dtype_A = scaling, p, lora_A.dtype
        return y

    @staticmethod
    @first_order
    def backward(ctx, saved, dY):
        x, lora_B, scales = saved[0], saved[3], saved[6:]
        need_x, need_weight, need_bias, need_A, need_B = ctx.needs_input_grad[:5]
        still_trains("lora_linear", "lora_B", lora_B, need_B)
        dX = dW = dA = dB = db = None
        if need_x or need_A or need_B:
            options = ctx.scaling, ctx.p, need_x, need_A, need_B, ctx.dtype_A
            dX, dA, dB = lora_backward(dY, *saved[:6], *options, *crossed(*ctx.format, *scales))
        if need_weight:
            dW = _check.rows("lora_linear", "dY", dY).t() @ _check.rows("lora_linear", "x", x)
        if need_bias:
            db = _check.rows("lora_linear", "dY", dY).sum(0)
        dX, dA, dB = dX if need_x else None, dA if need_A else None, dB if need_B else None
        return dX, dW, db, dA, dB, *(None,) * (3 + ctx.count)


def needed_backward(weight, lora_A, lora_B, s, mask, need_x, need_A, need_B):
    """weight, lora_A, lora_B, s and mask, with None in place of those that the needed gradients do not use."""
    need_dS = need_x or need_A
    return (
        weight if need_x else None,
        lora_A if need_x else None,
        lora_B if need_dS or need_B else None,
        s if need_dS or need_B else None,
        mask if need_dS else None,
    )


def lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor | Frozen,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scaling: float | torch.Tensor = 1.0,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """y = x W^T + b + scaling * (drop(x) A^T) B^T, differentiable in x, lora_A, lora_B, bias and weight.

    LoRA (Hu et al., arXiv:2106.09685) over a linear layer, dropout on the input of the low-rank branch only.

    Args:
        x: [..., K], float32, bfloat16, float16 or float64, any strides.
        weight: [N, K], x's dtype, any strides; need not require grad. Or a `Frozen`.
        lora_A, lora_B: [r, K] and [N, r], x's dtype, or float32 over a bfloat16 or float16 x.
        bias: [N] in x's dtype, or None.
        scaling: lora_alpha / r, or lora_alpha / sqrt(r) for rsLoRA (arXiv:2312.03732); a number, or a tensor of one,
            which may require grad.
        dropout_p: in [0, 1); each call draws a mask of its own from torch's generator of x's device.
        training: dropout applies only if true.
        generator: a torch.Generator to draw the mask's seed from instead; torch.compile breaks its graph at one, as at
            that of torch.rand.

    Returns:
        y [..., N] in x's dtype. Under autocast x, weight and bias are cast first, as in nn.Linear, and so are lora_A
        and lora_B in half precision; float32 ones stay.

    Raises:
        ValueError: a shape, a device, the rank or dropout_p does not fit; the message names it.
        TypeError: an argument is of another type, or a dtype is not accepted.
        RuntimeError: a kernel forced by `using` cannot run these arguments.
    """
    plain = type(x) in PLAIN and type(lora_A) in PLAIN and type(lora_B) in PLAIN and type(bias) in DENSE
    plain = plain and (type(weight) in PLAIN or type(weight).__name__ == "Frozen")  # torch.compile guards on no name
    if not plain or x.is_nested or x.layout is not torch.strided:
        _check.tensors("lora_linear", ("bias",), x=x, weight=weight, lora_A=lora_A, lora_B=lora_B, bias=bias)
    if type(weight) not in PLAIN:
        weight = operand(weight)
    p = dropout_p if type(dropout_p) is float else _check.number("lora_linear", "dropout_p", dropout_p)
    if p != 0:
        _check.dropout_p("lora_linear", p)
    if generator is not None:
        _check.generator("lora_linear", generator)
    if x.dim() < 1 or lora_A.dim() != 2 or lora_B.dim() != 2 or lora_A.shape[0] != lora_B.shape[1]:
        raise ValueError(
            f"lora_linear: x [..., K], lora_A [r, K] and lora_B [N, r] do not fit: x {tuple(x.shape)}, "
            f"lora_A {tuple(lora_A.shape)}, lora_B {tuple(lora_B.shape)}"
        )
    if _check.autocasts(x.device):
        x, weight, bias = autocast_as_linear(x, weight, bias)
        lora_A, lora_B = autocast_lora(x.dtype, lora_A, lora_B)
    if type(weight) not in PLAIN and is_stored(weight):
        _check.frozen("lora_linear", x, weight)
        N, r = weight.shape[0], lora_B.shape[1]
        if lora_B.shape[0] != N:
            _check.shape("lora_linear", "lora_B", lora_B, (N, r), f"[N, r] for weight of shape {weight.shape}")
    if type(scaling) is not float or is_compiling():  # the call takes half a microsecond
        scaling, lora_B = scaling_into("lora_linear", scaling, lora_B)
    return lora_linear_unchecked(x, weight, bias, lora_A, lora_B, scaling, p if training else 0.0, generator)


def lora_linear_unchecked(x, weight, bias, lora_A, lora_B, scaling, p, generator=None):
    """lora_linear without its checks, of a float scaling and outside autocast: for callers that have checked."""
    seed = philox.draw_seed(x.device, generator) if p > 0 else None
    if takes_a_function():
        weight, its = (weight, ()) if type(weight) in PLAIN else stored(weight)
        return apply_of(LoRALinearFunction)(x, weight, bias, lora_A, lora_B, scaling, p, seed, *its)
    return lora_forward(x, weight, bias, lora_A, lora_B, scaling, p, seed)[0]
