"""y = (x W^T + b) * l, or of a feedforward layer y = (x * l) W^T + b: IA3 over the frozen linear layer, one pass.

x [M, K], weight [N, K] (any strides), bias [N] or None -> y [M, N] in x's dtype. ia3_l is l: [N], or [K] with
feedforward; x's dtype, or float32 with a half-precision x. The product with l is rounded once.
z = x W^T + b, [M, N] in x's dtype, is saved for the gradient of l. z is an empty [0, N] if need_z is false, and with
feedforward, whose gradient needs x instead. Source of IA3: Liu et al., arXiv:2205.05638.
"""

import torch
import torch.nn.functional as F

from .. import _tuning
from ..frozen.op import FrozenOp
from ..frozen.operand import dense, layout
from . import _check, _triton
from ._scale import scaled
from .ia3_dx_dl import ia3_dx_dl

ia3_linear = FrozenOp(
    "ia3_linear(Tensor x, Tensor weight, Tensor? bias, Tensor ia3_l, bool feedforward, bool need_z)"
    " -> (Tensor y, Tensor z)"
)


@ia3_linear.check
def _(x, weight, bias, ia3_l, feedforward, need_z):
    op = "ia3_linear"
    _check.matrix(op, x=x, weight=weight)
    N = weight.shape[0]
    _check.features(op, x, "weight", weight)
    _check.ia3_l(op, ia3_l, weight, feedforward)
    if bias is not None:
        _check.shape(op, "bias", bias, (N,), f"[N] for weight of shape {tuple(weight.shape)}")
    _check.floating(op, "x", x)
    _check.same_dtype(op, "x", x, weight=weight, bias=bias)
    _check.adapter_dtype(op, "x", x, "ia3_l", ia3_l)
    _check.same_device(op, "x", x, weight=weight, bias=bias, ia3_l=ia3_l)


@ia3_linear.fake
def _(x, weight, bias, ia3_l, feedforward, need_z):
    M, N = x.shape[0], weight.shape[0]
    return x.new_empty(M, N), x.new_empty(M if need_z and not feedforward else 0, N)


@ia3_linear.flops
def _(x, weight, bias, ia3_l, feedforward, need_z):
    return 2 * x.numel() * weight.shape[0]


@ia3_linear.reference
def reference(x, weight, bias, ia3_l, feedforward, need_z):
    wide = torch.promote_types(x.dtype, torch.float32)
    ia3_l, no_z = ia3_l.to(wide), x.new_empty(0, weight.shape[0])
    bias = None if bias is None else bias.to(wide)
    if feedforward:
        return F.linear(x.to(wide) * ia3_l, weight.to(wide), bias).to(x.dtype), no_z
    z = F.linear(x.to(wide), weight.to(wide), bias)
    return (z * ia3_l).to(x.dtype), z.to(x.dtype) if need_z else no_z


@ia3_linear.gradients
def _(needs, grads, args, outputs):
    (x, weight, bias, ia3_l, feedforward, need_z), (z,) = args, outputs
    need_x, need_weight, need_bias, need_l = needs[:4]
    dY, dz = grads[0], None if feedforward or not need_z else grads[1]
    if dY is None:
        dY = x.new_zeros(x.shape[0], weight.shape[0])
    saved = x if feedforward else z if need_z or not need_l else F.linear(x, dense(weight), bias)
    dX, dl = ia3_dx_dl(dY, weight, ia3_l, saved, feedforward, need_x, need_l)
    dZ = dY if feedforward else scaled(dY, ia3_l)
    if dz is not None:
        dX, dZ = dX + dz @ dense(weight) if need_x else dX, dZ + dz
    return (
        dX if need_x else None,
        dZ.t() @ (scaled(x, ia3_l) if feedforward else x) if need_weight else None,
        dZ.sum(0) if need_bias else None,
        dl if need_l else None,
        *(None, None),
    )


@ia3_linear.kernel("blas")
def _(x, weight, bias, ia3_l, feedforward, need_z):
    no_z = x.new_empty(0, weight.shape[0])
    if feedforward:
        return F.linear(scaled(x, ia3_l), weight, bias), no_z
    z = F.linear(x, weight, bias)
    return (scaled(z, ia3_l), z) if need_z else (z.mul_(ia3_l), no_z)


@ia3_linear.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(x, weight, bias, ia3_l, feedforward, need_z):
    from ..kernels.ia3_linear import ia3_linear

    return ia3_linear(x, weight, bias, ia3_l, feedforward, need_z)


ia3_linear.native_cpu(_check.no_float64, checks=True)
ia3_linear.native_cuda(_check.no_float64)


@ia3_linear.timed
def _(x, weight, bias, ia3_l, feedforward, need_z):
    return (
        _tuning.bucket(x.shape[0]),
        *weight.shape,
        x.dtype,
        ia3_l.dtype,
        layout(weight),
        bias is None,
        feedforward,
        need_z,
    )
