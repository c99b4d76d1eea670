"""The gradients of multi_lora_forward: dX, and dA and dB of every adapter.

dY [.., N]; x [.., K] as given to multi_lora_forward, for dA; weight [N, K], for dX; lora_A and lora_B, lists of n
tensors; adapter_index int64 [M]; s and mask from multi_lora_forward (mask may be None if every p is 0, or for dB
alone) -> dX [.., K] in dY's dtype, and lists dA of [r_a, K] and dB of [N, r_a] in their parameters' dtypes: zeros of an
adapter without rows. What is not needed comes back as an empty [0], or a list of such. With dS_m = scaling_a dY_m B_a:

    dX_m = dY_m W + keep * (dS_m A_a) / (1 - p_a),  dA_a = sum dS_m^T drop(x_m),  dB_a = scaling_a sum dY_m^T s_m

the sums over the rows of adapter a alone.
"""

import torch

from ..frozen.op import FrozenOp
from . import _check, _segments, _triton, philox

multi_lora_backward = FrozenOp(
    "multi_lora_backward(Tensor dY, Tensor? x, Tensor? weight, Tensor[] lora_A, Tensor[] lora_B, Tensor adapter_index,"
    " Tensor s, Tensor? mask, float[] scalings, float[] ps, bool need_dX, bool need_dA, bool need_dB)"
    " -> (Tensor dX, Tensor[] dA, Tensor[] dB)"
)


@multi_lora_backward.check
def _(dY, x, weight, lora_A, lora_B, adapter_index, s, mask, scalings, ps, need_dX, need_dA, need_dB):
    op = "multi_lora_backward"
    _check.rows(op, "dY", dY)
    _check.floating(op, "dY", dY)
    M, N = _segments.rows_of(dY), dY.shape[-1]
    K = lora_A[0].shape[-1] if lora_A else 0
    _segments.check_adapters(op, "dY", dY, lora_A, lora_B, scalings, ps, N, K)
    _segments.check_index(op, adapter_index, M, len(lora_A))
    R = _segments.most_rank(lora_A)
    _check.shape(op, "s", s, (M, R), f"[M, max r] for dY of shape {tuple(dY.shape)} and ranks of at most {R}")
    _check.same_dtype(op, "lora_A", lora_A[0], s=s)
    needed = [(need_dX, "weight", weight), (need_dA, "x", x), ((need_dX or need_dA) and any(ps), "mask", mask)]
    for need, name, value in needed:
        if need and value is None:
            raise ValueError(f"{op}: {name} is None but need_dX={need_dX}, need_dA={need_dA}, ps={ps} ask for it")
    if need_dX:
        _check.shape(op, "weight", weight, (N, K), f"[N, K] for dY {tuple(dY.shape)} and lora_A of {K} columns")
        _check.same_dtype(op, "dY", dY, weight=weight)
    if need_dA:
        _check.rows(op, "x", x)
        _check.same_dtype(op, "dY", dY, x=x)
        _check.shape(op, "x", x, (*dY.shape[:-1], K), f"[.., K] for dY of shape {tuple(dY.shape)}")
    if mask is not None:
        _check.mask(op, mask, max(ps) if need_dX or need_dA else 0.0, M, K)
    optional = dict(x=x if need_dA else None, weight=weight if need_dX else None, mask=mask)
    _check.same_device(op, "dY", dY, adapter_index=adapter_index, s=s, **optional)


@multi_lora_backward.fake
def _(dY, x, weight, lora_A, lora_B, adapter_index, s, mask, scalings, ps, need_dX, need_dA, need_dB):
    return (
        dY.new_empty((*dY.shape[:-1], lora_A[0].shape[1]) if need_dX else 0),
        [A.new_empty(A.shape if need_dA else 0) for A in lora_A],
        [B.new_empty(B.shape if need_dB else 0) for B in lora_B],
    )


@multi_lora_backward.flops
def _(dY, x, weight, lora_A, lora_B, adapter_index, s, mask, scalings, ps, need_dX, need_dA, need_dB):
    (M, R), N, K = s.shape, dY.shape[-1], lora_A[0].shape[1]
    return 2 * M * (need_dX * (N + R) * K + need_dA * K * R + N * R * ((need_dX or need_dA) + need_dB))


def _backward(of_product, of_adapters):
    def backward(dY, x, weight, lora_A, lora_B, adapter_index, s, mask, scalings, ps, need_dX, need_dA, need_dB):
        grad = _check.rows("multi_lora_backward", "dY", dY)
        rows = _check.rows("multi_lora_backward", "x", x) if need_dA else None
        wide, narrow, S = of_product(dY), of_adapters(dY, lora_A), lora_A[0].dtype
        K = lora_A[0].shape[1]
        dX = grad.to(wide) @ weight.to(wide) if need_dX else None
        dA, dB = [], []
        for a, (A, B) in enumerate(zip(lora_A, lora_B, strict=True)):
            own = (adapter_index == a).nonzero().flatten()
            up, bits = grad[own].to(narrow), mask[own] if ps[a] > 0 and mask is not None else None
            if need_dX or need_dA:
                dS = ((up @ B.to(narrow)) * scalings[a]).to(torch.promote_types(S, narrow))
            if need_dX:
                dX = dX.index_add(0, own, philox.dropped(dS.to(narrow) @ A.to(narrow), bits, ps[a]).to(wide))
            if need_dA:
                dA.append((dS.to(narrow).t() @ philox.dropped(rows[own].to(narrow), bits, ps[a])).to(A.dtype))
            if need_dB:
                dB.append(((up.t() @ s[own, : A.shape[0]].to(narrow)) * scalings[a]).to(B.dtype))
        return (
            dX.to(dY.dtype).reshape(*dY.shape[:-1], K) if need_dX else dY.new_empty(0),
            [t.contiguous() for t in dA] or [A.new_empty(0) for A in lora_A],
            [t.contiguous() for t in dB] or [B.new_empty(0) for B in lora_B],
        )

    return backward


multi_lora_backward.reference(_backward(_segments.at_least_float, _segments.at_least_float))
multi_lora_backward.kernel("blas")(_backward(lambda dY: dY.dtype, lambda dY, lora_A: lora_A[0].dtype))
multi_lora_backward.native_cpu(_check.no_float64, checks=True)


@multi_lora_backward.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(dY, x, weight, lora_A, lora_B, adapter_index, s, mask, scalings, ps, need_dX, need_dA, need_dB):
    from ..kernels.multi_lora_backward import multi_lora_backward

    grad = _check.rows("multi_lora_backward", "dY", dY)
    rows = _check.rows("multi_lora_backward", "x", x) if need_dA else None
    bits, dropout = mask if any(ps) and (need_dX or need_dA) else None, _segments.dropout(ps)
    given = grad, rows, weight, lora_A, lora_B, adapter_index, s, bits, scalings
    dX, dA, dB = multi_lora_backward(*given, *dropout, need_dX, need_dA, need_dB)
    return dX.view(*dY.shape[:-1], dX.shape[1]) if need_dX else dX, dA, dB
