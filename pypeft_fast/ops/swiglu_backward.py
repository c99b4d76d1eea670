"""The gradients of h = silu(gate) * up, and h itself again, one pass over all of them.

dgate = dh * up * sigmoid(gate) * (1 + gate * (1 - sigmoid(gate))),  dup = dh * silu(gate).

dh, gate, up [.., N], of one dtype and shape, any strides -> dgate, dup, h [.., N] in their dtype. h is needed
for wgrad of the next layer; computing it again here saves keeping it from the forward pass. [0] if need_h is false.
"""

import torch
import torch.nn.functional as F

from .._op import Op
from . import _check, _triton

swiglu_backward = Op(
    "swiglu_backward(Tensor dh, Tensor gate, Tensor up, bool need_h) -> (Tensor dgate, Tensor dup, Tensor h)"
)


@swiglu_backward.check
def _(dh, gate, up, need_h):
    op = "swiglu_backward"
    _check.rows(op, "dh", dh)
    for name, t in (("gate", gate), ("up", up)):
        _check.shape(op, name, t, dh.shape, "that of dh")
    _check.floating(op, "dh", dh)
    _check.same_dtype(op, "dh", dh, gate=gate, up=up)
    _check.same_device(op, "dh", dh, gate=gate, up=up)


@swiglu_backward.fake
def _(dh, gate, up, need_h):
    return dh.new_empty(dh.shape), dh.new_empty(dh.shape), dh.new_empty(dh.shape if need_h else 0)


@swiglu_backward.reference
def reference(dh, gate, up, need_h):
    wide = torch.promote_types(dh.dtype, torch.float32)
    dY, t, u = (tensor.to(wide).contiguous() for tensor in (dh, gate, up))
    sigmoid = torch.sigmoid(t)
    dgate, dup = dY * u * sigmoid * (1 + t * (1 - sigmoid)), dY * t * sigmoid
    h = t * sigmoid * u if need_h else t.new_empty(0)
    return dgate.to(dh.dtype), dup.to(dh.dtype), h.to(dh.dtype)


@swiglu_backward.kernel("blas")
def _(dh, gate, up, need_h):
    dh, gate = dh.contiguous(), gate.contiguous()
    silu = F.silu(gate)
    dgate = torch.ops.aten.silu_backward(dh * up, gate)
    return dgate, dh * silu, silu.mul_(up) if need_h else dh.new_empty(0)


@swiglu_backward.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(dh, gate, up, need_h):
    from ..kernels.swiglu_backward import swiglu_backward

    return swiglu_backward(dh, gate, up, need_h)


swiglu_backward.native_cpu(_check.no_float64, checks=True)
