"""The gradients of x and of l through IA3 over a frozen linear layer; dl needs no pass of its own.

y = (x W^T + b) * l:  saved is z = x W^T + b, [M, N];  dX = (dY * l) W,  dl = the sum over rows of dY * z, [N].
y = (x * l) W^T + b, with feedforward:  saved is x, [M, K];  dX = (dY W) * l,  dl = that of x * (dY W), [K].

dY [M, N], weight [N, K] (any strides), ia3_l as given to ia3_linear -> dX [M, K] in dY's dtype, dl in ia3_l's, summed
in float32. A gradient that is not needed comes back empty, [0, K] and [0]; without dl, saved is ignored.
"""

import torch

from .. import _tuning
from ..frozen.op import FrozenOp
from ..frozen.operand import layout
from . import _check, _triton
from ._scale import scaled

ia3_dx_dl = FrozenOp(
    "ia3_dx_dl(Tensor dY, Tensor weight, Tensor ia3_l, Tensor saved, bool feedforward, bool need_dX, bool need_dl)"
    " -> (Tensor dX, Tensor dl)"
)


@ia3_dx_dl.check
def _(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl):
    op = "ia3_dx_dl"
    _check.matrix(op, dY=dY, weight=weight, saved=saved)
    (M, N), K = dY.shape, weight.shape[1]
    _check.shape(op, "weight", weight, (N, K), f"[N, K] for dY of shape {tuple(dY.shape)}")
    _check.ia3_l(op, ia3_l, weight, feedforward)
    if need_dl:
        expected, which = ((M, K), "x [M, K] with") if feedforward else ((M, N), "z [M, N] without")
        given = f"dY {tuple(dY.shape)} and weight {tuple(weight.shape)}"
        _check.shape(op, "saved", saved, expected, f"{which} feedforward, for {given}")
    _check.floating(op, "dY", dY)
    _check.same_dtype(op, "dY", dY, weight=weight, saved=saved)
    _check.adapter_dtype(op, "dY", dY, "ia3_l", ia3_l)
    _check.same_device(op, "dY", dY, weight=weight, ia3_l=ia3_l, saved=saved)


def _empty(dY, weight, ia3_l):
    return dY.new_empty(0, weight.shape[1]), ia3_l.new_empty(0)


@ia3_dx_dl.fake
def _(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl):
    dX = dY.new_empty(dY.shape[0] if need_dX else 0, weight.shape[1])
    return dX, ia3_l.new_empty(ia3_l.shape if need_dl else (0,))


@ia3_dx_dl.flops
def _(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl):
    return 2 * dY.numel() * weight.shape[1] if need_dX or (feedforward and need_dl) else 0


@ia3_dx_dl.reference
def reference(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl):
    wide = torch.promote_types(dY.dtype, torch.float32)
    no_dX, no_dl = _empty(dY, weight, ia3_l)
    given = dY.dtype
    scale, W, dY, saved = ia3_l.to(wide), weight.to(wide), dY.to(wide), saved.to(wide)
    if feedforward:
        factor = dY @ W  # the gradient of x * l
        dX = factor * scale if need_dX else no_dX
    else:
        factor = dY
        dX = (dY * scale) @ W if need_dX else no_dX
    dl = (factor * saved).sum(0) if need_dl else no_dl
    return dX.to(given), dl.to(ia3_l.dtype)


@ia3_dx_dl.kernel("blas")
def _(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl):
    wide = torch.promote_types(dY.dtype, torch.float32)
    dX, dl = _empty(dY, weight, ia3_l)
    factor = dY @ weight if feedforward and (need_dX or need_dl) else dY
    if need_dl:
        dl = (factor.to(wide) * saved).sum(0).to(ia3_l.dtype)
    if need_dX:
        dX = factor.mul_(ia3_l) if feedforward else scaled(dY, ia3_l) @ weight
    return dX, dl


@ia3_dx_dl.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl):
    from ..kernels.ia3_dx_dl import ia3_dx_dl

    return ia3_dx_dl(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl)


ia3_dx_dl.native_cpu(_check.no_float64, checks=True)
ia3_dx_dl.native_cuda(_check.no_float64)


@ia3_dx_dl.timed
def _(dY, weight, ia3_l, saved, feedforward, need_dX, need_dl):
    return (
        _tuning.bucket(dY.shape[0]),
        *weight.shape,
        dY.dtype,
        ia3_l.dtype,
        layout(weight),
        feedforward,
        need_dX,
        need_dl,
    )
