"""y = x W^T + b + scaling * s B^T: the frozen linear layer and the up-projection of LoRA, one pass over x, W and y.

x [M, K], weight [N, K] (any strides), bias [N] or None, s [M, r] from lora_shrink, lora_B [N, r] -> y [M, N] in x's
dtype. Source of LoRA: Hu et al., arXiv:2106.09685.

With a scale [N] (x's dtype, or float32 with a half-precision x) the op is the DoRA layer: z = x W^T + scaling * s B^T
and y = scale * z + b. The bias is not scaled, and z is not rounded before the scaling. With need_z the op also returns
z [M, N] in x's dtype, for the gradient of the scale; else z is an empty [0, N]. Source of DoRA:
Liu et al., arXiv:2402.09353.
"""

import torch
import torch.nn.functional as F

from .. import _tuning
from ..frozen.op import FrozenOp
from ..frozen.operand import dense, layout
from . import _check, _triton
from ._scale import scaled
from .lora_ds_db import lora_ds_db

lora_linear = FrozenOp(
    "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor s, Tensor lora_B, float scaling, Tensor? scale,"
    " bool need_z) -> (Tensor y, Tensor z)"
)


@lora_linear.check
def _(x, weight, bias, s, lora_B, scaling, scale, need_z):
    op = "lora_linear"
    _check.matrix(op, x=x, weight=weight, s=s, lora_B=lora_B)
    M, N = x.shape[0], weight.shape[0]
    _check.features(op, x, "weight", weight)
    _check.shape(
        op, "lora_B", lora_B, (N, s.shape[1]), f"[N, r] for weight {tuple(weight.shape)} and s {tuple(s.shape)}"
    )
    _check.shape(op, "s", s, (M, lora_B.shape[1]), f"[M, r] for x of shape {tuple(x.shape)}")
    if lora_B.shape[1] < 1:
        raise ValueError(f"{op}: lora_B has shape {tuple(lora_B.shape)}: the rank must be at least 1")
    if bias is not None:
        _check.shape(op, "bias", bias, (N,), f"[N] for weight of shape {tuple(weight.shape)}")
    _check.floating(op, "x", x)
    _check.same_dtype(op, "x", x, weight=weight, bias=bias)
    _check.adapter_dtype(op, "x", x, "lora_B", lora_B)
    _check.adapter_dtype(op, "x", x, "s", s)
    if scale is not None:
        _check.shape(op, "scale", scale, (N,), f"[N] for weight of shape {tuple(weight.shape)}")
        _check.adapter_dtype(op, "x", x, "scale", scale)
    elif need_z:
        raise ValueError(f"{op}: need_z=True needs a scale, which multiplies z; give a scale, or need_z=False")
    _check.same_device(op, "x", x, weight=weight, bias=bias, s=s, lora_B=lora_B, scale=scale)


@lora_linear.fake
def _(x, weight, bias, s, lora_B, scaling, scale, need_z):
    M, N = x.shape[0], weight.shape[0]
    return x.new_empty(M, N), x.new_empty(M if need_z else 0, N)


@lora_linear.flops
def _(x, weight, bias, s, lora_B, scaling, scale, need_z):
    return 2 * x.numel() * weight.shape[0] + 2 * s.numel() * weight.shape[0]


@lora_linear.reference
def reference(x, weight, bias, s, lora_B, scaling, scale, need_z):
    wide = torch.promote_types(x.dtype, torch.float32)
    z = x.to(wide) @ weight.to(wide).t() + scaling * (s.to(wide) @ lora_B.to(wide).t())
    y = z if scale is None else scale.to(wide) * z
    if bias is not None:
        y = y + bias.to(wide)
    return y.to(x.dtype), z.to(x.dtype) if need_z else x.new_empty(0, weight.shape[0])


@lora_linear.gradients
def _(needs, grads, args, outputs):
    (x, weight, _, s, lora_B, scaling, scale, need_z), (z,) = args, outputs
    need_x, need_weight, need_bias, need_s, need_B, _, need_scale, _ = needs
    dY, dz = grads[0], grads[1] if need_z else None
    if dY is None:
        dY = x.new_zeros(x.shape[0], weight.shape[0])
    dZ = dY if scale is None else scaled(dY, scale)
    dZ = dZ if dz is None else dZ + dz
    dS = dB = dscale = None
    if need_s or need_B:
        dS, dB = lora_ds_db(dZ, lora_B, s, scaling, need_s, need_B)
    if need_scale:
        z = z if need_z else lora_linear(x, weight, None, s, lora_B, scaling, None, False)[0]
        dscale = (dY.to(torch.promote_types(dY.dtype, torch.float32)) * z).sum(0).to(scale.dtype)
    return (
        dZ @ dense(weight) if need_x else None,
        dZ.t() @ x if need_weight else None,
        dY.sum(0) if need_bias else None,
        dS if need_s else None,
        dB if need_B else None,
        *(None, dscale, None),
    )


@lora_linear.kernel("blas")
def _(x, weight, bias, s, lora_B, scaling, scale, need_z):
    z = F.linear(x, weight, bias if scale is None else None)
    s, up = s.to(x.dtype), lora_B.to(x.dtype).t()
    if scaling == 0:  # addmm skips the product then, and loses the NaN of infinity * 0
        z.add_(s @ up * scaling)
    else:
        z.addmm_(s, up, alpha=scaling)
    return _outputs(z, bias, scale, need_z)


def _outputs(z, bias, scale, need_z):
    """y and z of the op, from the finished z, which already has the bias if there is no scale. Changes z in place."""
    no_z = z.new_empty(0, z.shape[1])
    if scale is None:
        return z, no_z
    y = torch.empty_like(z) if need_z else z  # out= rounds once, whatever scale's dtype is
    y = torch.mul(z, scale, out=y) if bias is None else torch.addcmul(bias, z, scale, out=y)
    return y, z if need_z else no_z


lora_linear.native_cpu(_check.no_float64, checks=True)
lora_linear.native_cuda(_check.no_float64)


@lora_linear.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(x, weight, bias, s, lora_B, scaling, scale, need_z):
    from ..kernels.lora_linear import lora_linear

    return lora_linear(x, weight, bias, s, lora_B, scaling, scale, need_z)


@lora_linear.kernel("triton+blas", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(x, weight, bias, s, lora_B, scaling, scale, need_z):
    from ..kernels._low_rank import add_product, low_rank

    z = low_rank(x, s, lora_B.t(), scaling, bias if scale is None else None)
    return _outputs(add_product(z, x, weight.t()), bias, scale, need_z)


@lora_linear.timed
def _(x, weight, bias, s, lora_B, scaling, scale, need_z):
    return (
        _tuning.bucket(x.shape[0]),
        *lora_B.shape,
        x.shape[1],
        x.dtype,
        lora_B.dtype,
        layout(weight),
        bias is None,
        scale is None,
        need_z,
    )
