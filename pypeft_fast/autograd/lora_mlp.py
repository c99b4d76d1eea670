"""The end of a gated feedforward block with LoRA, differentiable: the product with the activation and down_proj.

Saved for backward: gate and up, s [M, r] and the packed mask (one bit an element). The activation silu(gate) and the
layer's input h = silu(gate) * up are not kept: the pass that forms the gradients of gate and up forms h again for dA.
"""

import torch

from ..frozen.operand import Frozen, crossed, is_stored, operand, stored
from ..ops import _check, philox
from ..ops.lora_da import lora_da
from ..ops.lora_ds_db import lora_ds_db
from ..ops.lora_dx import lora_dx
from ..ops.lora_forward import lora_forward
from ..ops.swiglu import swiglu
from ..ops.swiglu_backward import swiglu_backward
from ._autocast import autocast_as_linear, autocast_lora
from ._first_order import apply_of, first_order, takes_a_function
from ._scaling import scaling_into
from ._still_trains import still_trains
from .lora import needed_backward


class LoRAGatedLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, up, weight, bias, lora_A, lora_B, scaling, p, seed, *its):
        h = swiglu(gate, up)
        y, s, mask = lora_forward(h, weight, bias, lora_A, lora_B, scaling, p, seed, *crossed(*its))
        need_gate, need_up, need_weight, _, need_A, need_B = ctx.needs_input_grad[:6]
        need_h = need_gate or need_up  # the gradient of h
        need_inputs = need_h or need_A or need_weight
        ctx.save_for_backward(
            gate if need_inputs else None,
            up if need_inputs else None,
            *needed_backward(weight, lora_A, lora_B, s, mask if p > 0 else None, need_h, need_A, need_B),
            *(its[1:] if need_h else ()),
        )
        ctx.format, ctx.count = its[:1] if need_h else (), len(its)
        ctx.scaling, ctx.p, ctx.dtype_A = scaling, p, lora_A.dtype
        return y

    @staticmethod
    @first_order
    def backward(ctx, saved, dY):
        (gate, up, weight, lora_A, lora_B, s, mask), scales = saved[:7], saved[7:]
        need_gate, need_up, need_weight, need_bias, need_A, need_B = ctx.needs_input_grad[:6]
        still_trains("lora_gated_linear", "lora_B", lora_B, need_B)
        need_h = need_gate or need_up
        rows = _check.rows("lora_gated_linear", "dY", dY)
        h = dS = dgate = dup = dW = dA = dB = db = None
        if mask is None:
            mask = dY.new_empty(0, 0, dtype=torch.uint8)
        if need_h or need_A or need_B:
            dS, dB = lora_ds_db(rows, lora_B, s, ctx.scaling, need_h or need_A, need_B)
        if need_h:
            dh = lora_dx(rows, weight, dS, lora_A, mask, ctx.p, *crossed(*ctx.format, *scales)).view(gate.shape)
            dgate, dup, h = swiglu_backward(dh, gate, up, need_A or need_weight)
        elif need_A or need_weight:
            h = swiglu(gate, up)
        if need_A or need_weight:
            h = _check.rows("lora_gated_linear", "h", h)
        if need_A:
            dA = lora_da(dS, h, mask, ctx.p, ctx.dtype_A)
        if need_weight:
            dW = rows.t() @ h
        if need_bias:
            db = rows.sum(0)
        grads = dgate if need_gate else None, dup if need_up else None, dW, db, dA, dB if need_B else None
        return *grads, *(None,) * (3 + ctx.count)


def lora_gated_linear(
    gate: torch.Tensor,
    up: torch.Tensor,
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
    """y = h W^T + b + scaling * (drop(h) A^T) B^T of h = silu(gate) * up, differentiable in every tensor.

    `lora_linear` of a gated feedforward block's product (SwiGLU, Shazeer, arXiv:2002.05202), with the dropout that
    lora_linear would draw. For the backward pass it keeps gate and up; unfused, silu(gate) and h are kept too.

    Args:
        gate, up: [..., K], float32, bfloat16, float16 or float64, of one dtype and shape, any strides.
        weight, lora_A, lora_B, bias, scaling, dropout_p, training, generator: as of lora_linear.

    Returns:
        y [..., N] in gate's dtype. h is formed in float32 and rounded once to that dtype. Under autocast gate, up and
        the parameters are cast first as lora_linear casts its own.

    Raises:
        ValueError: a shape, a device, the rank or dropout_p does not fit; the message names it.
        TypeError: an argument is of another type, or a dtype is not accepted.
        RuntimeError: a kernel forced by `using` cannot run these arguments.
    """
    given = dict(gate=gate, up=up, weight=weight, lora_A=lora_A, lora_B=lora_B, bias=bias)
    _check.tensors("lora_gated_linear", ("bias",), **given)
    weight = operand(weight)
    p = _check.number("lora_gated_linear", "dropout_p", dropout_p)
    _check.dropout_p("lora_gated_linear", p)
    _check.generator("lora_gated_linear", generator)
    if lora_A.dim() != 2 or lora_B.dim() != 2 or lora_A.shape[0] != lora_B.shape[1]:
        raise ValueError(
            f"lora_gated_linear: lora_A [r, K] and lora_B [N, r] do not fit: lora_A {tuple(lora_A.shape)}, lora_B "
            f"{tuple(lora_B.shape)}"
        )
    if _check.autocasts(gate.device):
        gate, up, weight, bias = autocast_as_linear(gate, up, weight, bias)
        lora_A, lora_B = autocast_lora(gate.dtype, lora_A, lora_B)
    if is_stored(weight):
        _check.frozen("lora_gated_linear", gate, weight)
    scaling, lora_B = scaling_into("lora_gated_linear", scaling, lora_B)
    p = p if training else 0.0
    seed = philox.draw_seed(gate.device, generator) if p > 0 else None
    if takes_a_function():
        weight, its = stored(weight)
        return apply_of(LoRAGatedLinearFunction)(gate, up, weight, bias, lora_A, lora_B, scaling, p, seed, *its)
    return lora_forward(swiglu(gate, up), weight, bias, lora_A, lora_B, scaling, p, seed)[0]
