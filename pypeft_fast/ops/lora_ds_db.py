"""dS = scaling * dY B and dB = scaling * dY^T s: dgrad and wgrad of the up-projection, one pass over dY.

dY [M, N], lora_B [N, r], s [M, r] -> dS [M, r] in s's dtype, dB [N, r] in lora_B's.
The forward is y = .. + scaling * s B^T. A gradient that is not needed comes back as an empty [0, r].
"""

import torch

from .._op import Op
from . import _check, _triton

lora_ds_db = Op(
    "lora_ds_db(Tensor dY, Tensor lora_B, Tensor s, float scaling, bool need_dS, bool need_dB)"
    " -> (Tensor dS, Tensor dB)"
)


@lora_ds_db.check
def _(dY, lora_B, s, scaling, need_dS, need_dB):
    op = "lora_ds_db"
    _check.matrix(op, dY=dY, lora_B=lora_B, s=s)
    (M, N), r = dY.shape, lora_B.shape[1]
    _check.shape(op, "lora_B", lora_B, (N, r), f"[N, r] for dY of shape {tuple(dY.shape)}")
    _check.shape(op, "s", s, (M, r), f"[M, r] for dY {tuple(dY.shape)} and lora_B {tuple(lora_B.shape)}")
    _check.floating(op, "dY", dY)
    _check.adapter_dtype(op, "dY", dY, "lora_B", lora_B)
    _check.adapter_dtype(op, "dY", dY, "s", s)
    _check.same_device(op, "dY", dY, lora_B=lora_B, s=s)


@lora_ds_db.fake
def _(dY, lora_B, s, scaling, need_dS, need_dB):
    M, r = s.shape
    return s.new_empty(M if need_dS else 0, r), lora_B.new_empty(dY.shape[1] if need_dB else 0, r)


@lora_ds_db.flops
def _(dY, lora_B, s, scaling, need_dS, need_dB):
    return 2 * dY.numel() * lora_B.shape[1] * (need_dS + need_dB)


@lora_ds_db.reference
def reference(dY, lora_B, s, scaling, need_dS, need_dB):
    wide = torch.promote_types(dY.dtype, torch.float32)
    dY = dY.to(wide)
    dS = scaling * (dY @ lora_B.to(wide)) if need_dS else s[:0]
    dB = scaling * (dY.t() @ s.to(wide)) if need_dB else lora_B[:0]
    return dS.to(s.dtype, copy=True), dB.to(lora_B.dtype, copy=True)


@lora_ds_db.kernel("blas")
def _(dY, lora_B, s, scaling, need_dS, need_dB):
    dY = dY.to(s.dtype)
    dS = (dY @ lora_B.to(s.dtype)).mul_(scaling) if need_dS else torch.empty_like(s[:0])
    dB = (dY.t() @ s).mul_(scaling).to(lora_B.dtype) if need_dB else torch.empty_like(lora_B[:0])
    return dS, dB


lora_ds_db.native_cpu(_check.no_float64, checks=True)
lora_ds_db.native_cuda(_check.no_float64)


@lora_ds_db.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(dY, lora_B, s, scaling, need_dS, need_dB):
    from ..kernels.lora_ds_db import lora_ds_db

    return lora_ds_db(dY, lora_B, s, scaling, need_dS, need_dB)
