"""norm[n] = |W_n + scaling * (B A)_n|: the row norms of a DoRA layer's effective weight.

weight [N, K] (any strides), lora_A [r, K], lora_B [N, r], of one dtype, or the adapters float32 with a half-precision
weight -> norm [N] in float32, or float64 for float64. On a CPU W + scaling * B A is formed a few rows at a time.
Source: Liu et al., arXiv:2402.09353.
"""

import torch

from ..frozen.op import FrozenOp
from . import _check
from .lora_shrink import lora_shrink

dora_norm = FrozenOp("dora_norm(Tensor weight, Tensor lora_A, Tensor lora_B, float scaling) -> Tensor")


@dora_norm.check
def _(weight, lora_A, lora_B, scaling):
    op = "dora_norm"
    _check.matrix(op, weight=weight, lora_A=lora_A, lora_B=lora_B)
    (N, K), r = weight.shape, lora_A.shape[0]
    _check.rank(op, lora_A)
    _check.shape(op, "lora_A", lora_A, (r, K), f"[r, K] for weight of shape {(N, K)}")
    _check.shape(op, "lora_B", lora_B, (N, r), f"[N, r] for weight {(N, K)} and lora_A {(r, K)}")
    _check.floating(op, "weight", weight)
    _check.adapter_dtype(op, "weight", weight, "lora_A", lora_A)
    _check.same_dtype(op, "lora_A", lora_A, lora_B=lora_B)
    _check.same_device(op, "weight", weight, lora_A=lora_A, lora_B=lora_B)


def _wide(weight):
    return torch.promote_types(weight.dtype, torch.float32)


@dora_norm.fake
def _(weight, lora_A, lora_B, scaling):
    return lora_A.new_empty(weight.shape[0], dtype=_wide(weight))


@dora_norm.flops
def _(weight, lora_A, lora_B, scaling):
    return 2 * weight.numel() * lora_A.shape[0]


@dora_norm.reference
def reference(weight, lora_A, lora_B, scaling):
    wide = _wide(weight)
    return torch.linalg.vector_norm(weight.to(wide) + scaling * (lora_B.to(wide) @ lora_A.to(wide)), dim=1)


@dora_norm.kernel("blas")
def squares(weight, lora_A, lora_B, scaling):
    """|W_n|^2 + scaling * B_n . (2 (W A^T)_n + scaling * B_n (A A^T)): W + scaling * B A is never formed.

    The norm is less exact if the update cancels a row to less than about a thousandth of its norm, and NaN if a row
    holds an infinity.
    """
    A = lora_A.to(_wide(weight))
    return _of_squares(weight, A, lora_B, scaling, torch.mm(weight.to(A.dtype), A.t()))


@dora_norm.parts
def _(weight, lora_A, lora_B, scaling):
    """The same formula. W A^T of a half-precision weight is computed by lora_shrink: the weight is neither cast nor
    copied."""
    A = lora_A.to(_wide(weight))
    through = torch.mm(A, weight.t()).t() if weight.dtype == A.dtype else lora_shrink(weight, A, 0.0, None)[0]
    return _of_squares(weight, A, lora_B, scaling, through)


def _of_squares(weight, A, lora_B, scaling, through_weight):
    """The norm, given W A^T [N, r]; A and W A^T have the dtype of the norm."""
    B = lora_B.to(A.dtype)
    lengths = torch.linalg.vector_norm(weight, dim=1, dtype=A.dtype).square()
    cross = torch.addmm(through_weight, B, torch.mm(A, A.t()), beta=2.0, alpha=scaling)
    return torch.add(lengths, (B * cross).sum(1), alpha=scaling).clamp_min(0).sqrt()


dora_norm.native_cpu(_check.no_float64, checks=True)
