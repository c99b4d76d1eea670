"""y = x W^T + b + scaling * s B^T: the frozen linear layer and the up-projection of LoRA, one pass over x, W and y.

x [M, K], weight [N, K] (any strides), bias [N] or None, s [M, r] from lora_shrink, lora_B [N, r] -> y [M, N] in x's
dtype. Source of LoRA: Hu et al., arXiv:2106.09685.
"""

import torch
import torch.nn.functional as F

from .. import _tuning
from .._op import Op
from . import _check, _triton

lora_linear = Op("lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor s, Tensor lora_B, float scaling) -> Tensor")


@lora_linear.check
def _(x, weight, bias, s, lora_B, scaling):
    op = "lora_linear"
    _check.matrix(op, x=x, weight=weight, s=s, lora_B=lora_B)
    (M, K), N = x.shape, weight.shape[0]
    _check.shape(op, "weight", weight, (N, K), f"[N, K] for x of shape {tuple(x.shape)}")
    _check.shape(
        op, "lora_B", lora_B, (N, s.shape[1]), f"[N, r] for weight {tuple(weight.shape)} and s {tuple(s.shape)}"
    )
    _check.shape(op, "s", s, (M, lora_B.shape[1]), f"[M, r] for x of shape {tuple(x.shape)}")
    if bias is not None:
        _check.shape(op, "bias", bias, (N,), f"[N] for weight of shape {tuple(weight.shape)}")
    _check.floating(op, "x", x)
    _check.same_dtype(op, "x", x, weight=weight, bias=bias)
    _check.adapter_dtype(op, "x", x, "lora_B", lora_B)
    _check.adapter_dtype(op, "x", x, "s", s)
    _check.same_device(op, "x", x, weight=weight, bias=bias, s=s, lora_B=lora_B)


@lora_linear.fake
def _(x, weight, bias, s, lora_B, scaling):
    return x.new_empty(x.shape[0], weight.shape[0])


@lora_linear.reference
def reference(x, weight, bias, s, lora_B, scaling):
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide) @ weight.to(wide).t() + scaling * (s.to(wide) @ lora_B.to(wide).t())
    if bias is not None:
        y = y + bias.to(wide)
    return y.to(x.dtype)


@lora_linear.kernel("blas")
def _(x, weight, bias, s, lora_B, scaling):
    return F.linear(x, weight, bias).addmm_(s.to(x.dtype), lora_B.to(x.dtype).t(), alpha=scaling)


lora_linear.native_cpu(_check.no_float64)


@lora_linear.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(x, weight, bias, s, lora_B, scaling):
    from ..kernels.lora_linear import lora_linear

    return lora_linear(x, weight, bias, s, lora_B, scaling)


@lora_linear.timed
def _(x, weight, bias, s, lora_B, scaling):
    return (
        _tuning.bucket(x.shape[0]),
        *lora_B.shape,
        x.shape[1],
        x.dtype,
        lora_B.dtype,
        weight.stride(1) == 1,
        bias is None,
    )
