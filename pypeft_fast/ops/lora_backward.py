"""The gradients of a LoRA layer: lora_ds_db, lora_dx and lora_da, in one call.

On a GPU products above the limits of _host_bound.py run as the three ops, each with its fastest kernel.

dY [.., N]; x [.., K] as given to lora_forward, for dA; weight [N, K] and lora_A [r, K], for dX; lora_B [N, r]; s and
mask from lora_forward (mask may be None if p is 0, or for dB alone) -> dX [.., K] in dY's dtype, dA [r, K] in dtype_A,
the dtype of lora_A, and dB [N, r] in lora_B's. A gradient that is not needed comes back as an empty [0].
"""

import torch

from ..frozen.op import FrozenOp
from . import _check, _host_bound
from .lora_da import lora_da
from .lora_ds_db import lora_ds_db
from .lora_dx import lora_dx

lora_backward = FrozenOp(
    "lora_backward(Tensor dY, Tensor? x, Tensor? weight, Tensor? lora_A, Tensor lora_B, Tensor s, Tensor? mask,"
    " float scaling, float p, bool need_dX, bool need_dA, bool need_dB, ScalarType dtype_A)"
    " -> (Tensor dX, Tensor dA, Tensor dB)"
)


def _mask_or_none(dY, mask):
    return dY.new_empty(0, 0, dtype=torch.uint8) if mask is None else mask


@lora_backward.check
def _(dY, x, weight, lora_A, lora_B, s, mask, scaling, p, need_dX, need_dA, need_dB, dtype_A):
    op = "lora_backward"
    grad = _check.rows(op, "dY", dY)
    lora_ds_db.check_arguments(grad, lora_B, s, scaling, need_dX or need_dA, need_dB)
    needed = [(need_dX, "weight", weight), (need_dX, "lora_A", lora_A), (need_dA, "x", x)]
    needed.append(((need_dX or need_dA) and p > 0, "mask", mask))
    for need, name, value in needed:
        if need and value is None:
            raise ValueError(f"{op}: {name} is None but need_dX={need_dX}, need_dA={need_dA}, p={p} ask for it")
    if need_dX:
        lora_dx.check_arguments(grad, weight, s, lora_A, _mask_or_none(dY, mask), p)
    if need_dA:
        rows = _check.rows(op, "x", x)
        _check.same_dtype(op, "dY", dY, x=x)
        lora_da.check_arguments(s, rows, _mask_or_none(dY, mask), p, dtype_A)


def _shape_of_dX(dY, weight):
    return *dY.shape[:-1], weight.shape[1]


@lora_backward.fake
def _(dY, x, weight, lora_A, lora_B, s, mask, scaling, p, need_dX, need_dA, need_dB, dtype_A):
    return (
        dY.new_empty(_shape_of_dX(dY, weight) if need_dX else 0),
        dY.new_empty((s.shape[1], x.shape[-1]) if need_dA else 0, dtype=dtype_A),
        lora_B.new_empty(lora_B.shape if need_dB else 0),
    )


@lora_backward.flops
def _(dY, x, weight, lora_A, lora_B, s, mask, scaling, p, need_dX, need_dA, need_dB, dtype_A):
    of_dX = (dY.numel() + s.numel()) * weight.shape[1] if need_dX else 0
    of_dA = x.numel() * s.shape[1] if need_dA else 0
    return 2 * (of_dX + of_dA + dY.numel() * s.shape[1] * ((need_dX or need_dA) + need_dB))


def _of(ds_db, dx, da):
    def backward(dY, x, weight, lora_A, lora_B, s, mask, scaling, p, need_dX, need_dA, need_dB, dtype_A):
        grad, kept = _check.rows("lora_backward", "dY", dY), _mask_or_none(dY, mask)
        dS, dB = ds_db(grad, lora_B, s, scaling, need_dX or need_dA, need_dB)
        dX = dx(grad, weight, dS, lora_A, kept, p).view(_shape_of_dX(dY, weight)) if need_dX else dY.new_empty(0)
        dA = dY.new_empty(0, dtype=dtype_A)
        if need_dA:
            dA = da(dS, _check.rows("lora_backward", "x", x), kept, p, dtype_A)
        return dX, dA, dB if need_dB else lora_B.new_empty(0)

    return backward


def _by(kernel):
    return _of(*(op.function(kernel) for op in (lora_ds_db, lora_dx, lora_da)))


lora_backward.reference(_by("reference"))
lora_backward.kernel("blas")(_by("blas"))
lora_backward.native_cpu(_check.no_float64, checks=True)
lora_backward.native_cuda(_check.no_float64, checks=True)
lora_backward.parts(_of(lora_ds_db, lora_dx, lora_da))


@lora_backward.small
def _(dY, x, weight, lora_A, lora_B, *_):
    like_dX = next(t for t in (lora_A, x, lora_B) if t is not None)  # for dB alone the product has r columns
    return _host_bound.is_small(dY, like_dX.shape[-1])
