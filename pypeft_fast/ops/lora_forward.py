"""y = x W^T + b + scaling * (drop(x) A^T) B^T: lora_shrink and lora_linear, in one call.

On a GPU products above the limits of _host_bound.py run as the two ops, each with its fastest kernel.

x [.., K], weight [N, K] (any strides), bias [N] or None, lora_A [r, K], lora_B [N, r], seed int64 [1] if p > 0 ->
y [.., N] in x's dtype, s [M, r] and mask as of lora_shrink, M the rows of x. On small layers a call costs more than its
arithmetic. Source of LoRA: Hu et al., arXiv:2106.09685.
"""

import torch

from ..frozen.op import FrozenOp
from . import _check, _host_bound
from .lora_backward import lora_backward
from .lora_linear import lora_linear
from .lora_shrink import lora_shrink, shrink_gradients

lora_forward = FrozenOp(
    "lora_forward(Tensor x, Tensor weight, Tensor? bias, Tensor lora_A, Tensor lora_B, float scaling, float p,"
    " Tensor? seed) -> (Tensor y, Tensor s, Tensor mask)"
)


@lora_forward.check
def _(x, weight, bias, lora_A, lora_B, scaling, p, seed):
    op = "lora_forward"
    rows = _check.rows(op, "x", x)
    _check.matrix(op, weight=weight, lora_A=lora_A)
    _check.features(op, x, "weight", weight)
    _check.shape(
        op, "lora_A", lora_A, (lora_A.shape[0], weight.shape[1]), f"[r, K] for weight of shape {tuple(weight.shape)}"
    )
    lora_shrink.check_arguments(rows, lora_A, p, seed)
    if seed is not None and seed.numel() != 1:
        raise ValueError(f"{op}: seed has {seed.numel()} elements; give one: lora_forward has one projection")
    s, _ = lora_shrink.fake_outputs(rows, lora_A, 0.0, None)
    lora_linear.check_arguments(rows, weight, bias, s, lora_B, scaling, None, False)


@lora_forward.fake
def _(x, weight, bias, lora_A, lora_B, scaling, p, seed):
    rows = _check.rows("lora_forward", "x", x)
    return x.new_empty(*x.shape[:-1], weight.shape[0]), *lora_shrink.fake_outputs(rows, lora_A, p, seed)


@lora_forward.gradients
def _(needs, grads, args, outputs):
    (x, weight, _, lora_A, lora_B, scaling, p, _), (s, mask) = args, outputs
    need_x, need_weight, need_bias, need_A, need_B = needs[:5]
    rows = _check.rows("lora_forward", "x", x)
    dY = rows.new_zeros(rows.shape[0], weight.shape[0]) if grads[0] is None else grads[0].flatten(0, -2)
    saved = rows, weight, lora_A, lora_B, s, mask if p > 0 else None
    dX, dA, dB = lora_backward(dY, *saved, scaling, p, need_x, need_A, need_B, lora_A.dtype)
    if grads[1] is not None:
        more_X, more_A = shrink_gradients(need_x, need_A, grads[1], rows, lora_A, p, mask)
        dX, dA = dX + more_X if need_x else dX, dA + more_A if need_A else dA
    return (
        dX.view(x.shape) if need_x else None,
        dY.t() @ rows if need_weight else None,
        dY.sum(0) if need_bias else None,
        dA if need_A else None,
        dB if need_B else None,
        *(None, None, None),
    )


@lora_forward.flops
def _(x, weight, bias, lora_A, lora_B, scaling, p, seed):
    (N, K), r = weight.shape, lora_A.shape[0]
    return 2 * (x.numel() // max(1, K)) * (K * r + N * K + N * r)


def _of(shrink, linear):
    def forward(x, weight, bias, lora_A, lora_B, scaling, p, seed):
        rows = _check.rows("lora_forward", "x", x)
        s, mask = shrink(rows, lora_A, p, seed)
        y, _ = linear(rows, weight, bias, s, lora_B, scaling, None, False)
        return torch.ops.aten._unsafe_view(y, (*x.shape[:-1], weight.shape[0])), s, mask

    return forward


lora_forward.reference(_of(lora_shrink.function("reference"), lora_linear.function("reference")))
lora_forward.kernel("blas")(_of(lora_shrink.function("blas"), lora_linear.function("blas")))
lora_forward.native_cpu(_check.no_float64, checks=True)
lora_forward.native_cuda(_check.no_float64, checks=True)
lora_forward.parts(_of(lora_shrink, lora_linear))


@lora_forward.small
def _(x, weight, bias, lora_A, lora_B, *_):
    return _host_bound.is_small(x, lora_B.shape[0])
