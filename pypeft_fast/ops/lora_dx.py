"""dX = dY W + keep * (dS A) * 65536 / (65536 - T): the gradient of x through the frozen layer and through LoRA.

dY [M, N], weight [N, K] (any strides), dS [M, r] from lora_ds_db, lora_A [r, K], mask uint8 [M, ceil(K/8)] from
lora_shrink -> dX [M, K] in dY's dtype. Without dropout (p = 0) the mask is ignored and dX = dY W + dS A.
"""

import torch

from .. import _tuning
from ..frozen.op import FrozenOp
from ..frozen.operand import layout
from . import _check, _triton, philox

lora_dx = FrozenOp("lora_dx(Tensor dY, Tensor weight, Tensor dS, Tensor lora_A, Tensor mask, float p) -> Tensor")


@lora_dx.check
def _(dY, weight, dS, lora_A, mask, p):
    op = "lora_dx"
    _check.matrix(op, dY=dY, weight=weight, dS=dS, lora_A=lora_A)
    (M, N), K, r = dY.shape, weight.shape[1], lora_A.shape[0]
    _check.shape(op, "weight", weight, (N, K), f"[N, K] for dY of shape {tuple(dY.shape)}")
    _check.shape(op, "lora_A", lora_A, (r, K), f"[r, K] for weight of shape {tuple(weight.shape)}")
    _check.shape(op, "dS", dS, (M, r), f"[M, r] for dY {tuple(dY.shape)} and lora_A {tuple(lora_A.shape)}")
    _check.rank(op, lora_A)
    _check.floating(op, "dY", dY)
    _check.same_dtype(op, "dY", dY, weight=weight)
    _check.adapter_dtype(op, "dY", dY, "lora_A", lora_A)
    _check.adapter_dtype(op, "dY", dY, "dS", dS)
    _check.dropout_p(op, p)
    _check.mask(op, mask, p, M, K)
    _check.same_device(op, "dY", dY, weight=weight, dS=dS, lora_A=lora_A, mask=mask)


@lora_dx.fake
def _(dY, weight, dS, lora_A, mask, p):
    return dY.new_empty(dY.shape[0], weight.shape[1])


@lora_dx.flops
def _(dY, weight, dS, lora_A, mask, p):
    return 2 * (dY.numel() + dS.numel()) * weight.shape[1]


@lora_dx.reference
def reference(dY, weight, dS, lora_A, mask, p):
    wide = torch.promote_types(dY.dtype, torch.float32)
    # The derivative of drop(x) in x is the same mask and scale: drop is linear.
    through_lora = philox.dropped(dS.to(wide) @ lora_A.to(wide), mask, p)
    return (dY.to(wide) @ weight.to(wide) + through_lora).to(dY.dtype)


@lora_dx.kernel("blas")
def _(dY, weight, dS, lora_A, mask, p):
    dS, lora_A = dS.to(dY.dtype), lora_A.to(dY.dtype)
    dX = dY @ weight
    return dX.addmm_(dS, lora_A) if p == 0 else dX.add_(philox.dropped(dS @ lora_A, mask, p))


lora_dx.native_cpu(_check.no_float64, checks=True)
lora_dx.native_cuda(_check.no_float64)


@lora_dx.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(dY, weight, dS, lora_A, mask, p):
    from ..kernels.lora_dx import lora_dx

    return lora_dx(dY, weight, dS, lora_A, mask, philox.scale(p) if p > 0 else None)


@lora_dx.kernel("triton+blas", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(dY, weight, dS, lora_A, mask, p):
    from ..kernels._low_rank import add_product, low_rank

    through_lora = low_rank(dY, dS, lora_A, philox.scale(p), mask=mask if p > 0 else None)
    return add_product(through_lora, dY, weight)


@lora_dx.timed
def _(dY, weight, dS, lora_A, mask, p):
    return _tuning.bucket(dY.shape[0]), *lora_A.shape, dY.shape[1], dY.dtype, lora_A.dtype, layout(weight), p > 0
