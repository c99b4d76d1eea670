"""dA = dS^T drop(x): wgrad of the down-projection, one pass over x.

dS [M, r] from lora_ds_db, x [M, K] as given to lora_shrink, mask uint8 [M, ceil(K/8)] from lora_shrink (ignored if p
is 0) -> dA [r, K] in `dtype`, which is lora_A's. It follows from s = drop(x) A^T; the mask gives drop(x) again.
"""

import torch

from .._op import Op
from . import _check, _triton, philox

lora_da = Op("lora_da(Tensor dS, Tensor x, Tensor mask, float p, ScalarType dtype) -> Tensor")


@lora_da.check
def _(dS, x, mask, p, dtype):
    op = "lora_da"
    _check.matrix(op, dS=dS, x=x)
    _check.shape(op, "dS", dS, (x.shape[0], dS.shape[1]), f"[M, r] for x of shape {tuple(x.shape)}")
    _check.floating(op, "x", x)
    _check.adapter_dtype(op, "x", x, "dS", dS)
    if dtype not in (x.dtype, dS.dtype):
        raise TypeError(f"{op}: dtype={dtype} must be lora_A's, which is {x.dtype} or {dS.dtype} here")
    _check.dropout_p(op, p)
    _check.mask(op, mask, p, *x.shape)
    _check.same_device(op, "x", x, dS=dS, mask=mask)


@lora_da.fake
def _(dS, x, mask, p, dtype):
    return x.new_empty(dS.shape[1], x.shape[1], dtype=dtype)


@lora_da.flops
def _(dS, x, mask, p, dtype):
    return 2 * x.numel() * dS.shape[1]


@lora_da.reference
def reference(dS, x, mask, p, dtype):
    wide = torch.promote_types(x.dtype, torch.float32)
    return (dS.to(wide).t() @ philox.dropped(x.to(wide), mask, p)).to(dtype)


@lora_da.kernel("blas")
def _(dS, x, mask, p, dtype):
    return (dS.t() @ philox.dropped(x.to(dS.dtype), mask, p)).to(dtype)


lora_da.native_cpu(_check.no_float64, checks=True)
lora_da.native_cuda(_check.no_float64)


@lora_da.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(dS, x, mask, p, dtype):
    from ..kernels.lora_da import lora_da

    return lora_da(dS, x, mask, philox.scale(p) if p > 0 else None, dtype)
