"""h = silu(gate) * up: the activation of a gated feedforward block, one pass; silu(t) = t / (1 + exp(-t)).

gate, up [.., N], of one dtype and shape, any strides -> h [.., N] in their dtype. Compiled kernels multiply in float32
and round once, where eager PyTorch rounds silu(gate) first. Source: Shazeer, arXiv:2002.05202 (SwiGLU).
"""

import torch
import torch.nn.functional as F

from .._op import Op
from . import _check, _triton
from .swiglu_backward import swiglu_backward

swiglu = Op("swiglu(Tensor gate, Tensor up) -> Tensor")


@swiglu.check
def _(gate, up):
    op = "swiglu"
    _check.rows(op, "gate", gate)
    _check.shape(op, "up", up, gate.shape, "that of gate")
    _check.floating(op, "gate", gate)
    _check.same_dtype(op, "gate", gate, up=up)
    _check.same_device(op, "gate", gate, up=up)


@swiglu.fake
def _(gate, up):
    return gate.new_empty(gate.shape)


@swiglu.reference
def reference(gate, up):
    wide = torch.promote_types(gate.dtype, torch.float32)
    t = gate.to(wide)
    return (t * torch.sigmoid(t) * up.to(wide)).to(gate.dtype).contiguous()


@swiglu.gradients
def _(needs, grads, args, outputs):
    dgate, dup, _ = swiglu_backward(*grads, *args, False)
    return dgate if needs[0] else None, dup if needs[1] else None


@swiglu.kernel("blas")
def _(gate, up):
    return F.silu(gate.contiguous()).mul_(up)


@swiglu.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(gate, up):
    from ..kernels.swiglu import swiglu

    return swiglu(gate, up)


swiglu.native_cpu(_check.no_float64, checks=True)
