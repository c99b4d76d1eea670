"""y_m = W x_m + b + scaling_a B_a A_a drop_a(x_m), a = adapter_index[m]: a linear layer whose rows have their adapters.

x [.., K], weight [N, K] (any strides), bias [N] or None, lora_A and lora_B lists of n tensors [r_a, K] and [N, r_a],
adapter_index int64 [M], M the rows of x, -1 for a row of the base alone, scalings and ps lists of n numbers, seeds
int64 [n] if some p > 0 -> y [.., N] in x's dtype, s [M, max r] (zeros behind a row's own rank) and mask uint8
[M, ceil(K/8)], zeros in rows that drop nothing, or [0, ..] if every p is 0. Row m draws row m of its adapter's own
stream: whose rows lie around it changes nothing. Source of LoRA: Hu et al., arXiv:2106.09685.
"""

import torch

from ..frozen.op import FrozenOp
from . import _check, _segments, _triton, philox
from .multi_lora_backward import multi_lora_backward

CUDA_ROWS, CUDA_ADAPTERS = 16, 128  # the most that csrc/cuda takes: kDecodeRows and kMostAdapters there

multi_lora_forward = FrozenOp(
    "multi_lora_forward(Tensor x, Tensor weight, Tensor? bias, Tensor[] lora_A, Tensor[] lora_B, Tensor adapter_index,"
    " float[] scalings, float[] ps, Tensor? seeds) -> (Tensor y, Tensor s, Tensor mask)"
)


@multi_lora_forward.check
def _(x, weight, bias, lora_A, lora_B, adapter_index, scalings, ps, seeds):
    op = "multi_lora_forward"
    _check.rows(op, "x", x)
    _check.matrix(op, weight=weight)
    _check.features(op, x, "weight", weight)
    _check.floating(op, "x", x)
    _check.same_dtype(op, "x", x, weight=weight, bias=bias)
    N, K = weight.shape
    if bias is not None:
        _check.shape(op, "bias", bias, (N,), f"[N] for weight of shape {(N, K)}")
    _segments.check_adapters(op, "x", x, lora_A, lora_B, scalings, ps, N, K)
    _segments.check_index(op, adapter_index, _segments.rows_of(x), len(lora_A))
    _segments.check_seeds(op, seeds, ps)
    _check.same_device(op, "x", x, weight=weight, bias=bias, adapter_index=adapter_index, seeds=seeds)


@multi_lora_forward.fake
def _(x, weight, bias, lora_A, lora_B, adapter_index, scalings, ps, seeds):
    M = _segments.rows_of(x)
    s = x.new_empty(M, _segments.most_rank(lora_A), dtype=lora_A[0].dtype)
    mask = x.new_empty(M if any(ps) else 0, (x.shape[-1] + 7) // 8, dtype=torch.uint8)
    return x.new_empty(*x.shape[:-1], weight.shape[0]), s, mask


@multi_lora_forward.flops
def _(x, weight, bias, lora_A, lora_B, adapter_index, scalings, ps, seeds):
    """Of the adapters' products those of the widest rank: whose rows they are, only the index tells."""
    N, K = weight.shape
    return 2 * _segments.rows_of(x) * (N * K + (N + K) * _segments.most_rank(lora_A))


@multi_lora_forward.gradients
def _(needs, grads, args, outputs):
    (x, weight, _, lora_A, lora_B, index, scalings, ps, _), (s, mask) = args, outputs
    need_x, need_weight, need_bias, need_A, need_B = needs[:5]
    rows = _check.rows("multi_lora_forward", "x", x)
    dY = rows.new_zeros(rows.shape[0], weight.shape[0]) if grads[0] is None else grads[0].flatten(0, -2)
    saved = rows, weight, lora_A, lora_B, index, s, mask if any(ps) else None
    wanted = need_x, any(need_A), any(need_B)
    dX, dA, dB = multi_lora_backward(dY, *saved, scalings, ps, *wanted)
    if grads[1] is not None:
        dX, dA = _with_shrink_gradients(wanted, dX, dA, grads[1], rows, lora_A, index, ps, mask)
    return (
        dX.view(x.shape) if need_x else None,
        dY.t() @ rows if need_weight else None,
        dY.sum(0) if need_bias else None,
        _segments.needed(dA, need_A),
        _segments.needed(dB, need_B),
        *(None,) * 4,
    )


def _with_shrink_gradients(needs, dX, dA, ds, x, lora_A, adapter_index, ps, mask):
    """dX and dA with what the gradient of s adds: keep * (ds A) / (1 - p) and ds^T drop(x), adapter by adapter."""
    for a, A in enumerate(lora_A):
        own = (adapter_index == a).nonzero().flatten()
        d, bits = ds[own, : A.shape[0]], mask[own] if ps[a] > 0 else None
        if needs[0]:
            dX = dX.index_add(0, own, philox.dropped(d @ A.to(d.dtype), bits, ps[a]).to(dX.dtype))
        if needs[1]:
            dA[a] = dA[a] + (d.t() @ philox.dropped(x[own].to(d.dtype), bits, ps[a])).to(A.dtype)
    return dX, dA


def _forward(of_product, of_adapters):
    """In plain PyTorch, adapter by adapter; of_product and of_adapters give the dtypes that x and A compute in."""

    def forward(x, weight, bias, lora_A, lora_B, adapter_index, scalings, ps, seeds):
        rows, S = _check.rows("multi_lora_forward", "x", x), lora_A[0].dtype
        M, K = rows.shape
        wide, narrow = of_product(x), of_adapters(x, lora_A)
        y = rows.to(wide) @ weight.to(wide).t()
        if bias is not None:
            y = y + bias.to(wide)
        s = rows.new_zeros(M, _segments.most_rank(lora_A), dtype=S)
        mask = rows.new_zeros(M if any(ps) else 0, (K + 7) // 8, dtype=torch.uint8)
        for a, (A, B) in enumerate(zip(lora_A, lora_B, strict=True)):
            own = (adapter_index == a).nonzero().flatten()
            bits = philox.packed_mask(M, K, ps[a], seeds[a : a + 1])[own] if ps[a] > 0 else None
            low = (philox.dropped(rows[own].to(narrow), bits, ps[a]) @ A.to(narrow).t()).to(S)
            up = (low.to(narrow) @ B.to(narrow).t()) * scalings[a]
            s[own, : A.shape[0]] = low
            if bits is not None:
                mask[own] = bits
            y = y.index_add(0, own, up.to(wide))
        return y.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0]), s, mask

    return forward


multi_lora_forward.reference(_forward(_segments.at_least_float, _segments.at_least_float))
multi_lora_forward.kernel("blas")(_forward(lambda x: x.dtype, lambda x, lora_A: lora_A[0].dtype))
multi_lora_forward.native_cpu(_check.no_float64, checks=True)


def _decodes_only(x, weight, bias, lora_A, lora_B, adapter_index, scalings, ps, seeds):
    """Why the CUDA kernel, which is for decoding, cannot take these arguments, or None. Triton takes the others."""
    if any(ps):
        return f"it has no dropout, and ps={ps}"
    if _segments.rows_of(x) > CUDA_ROWS:
        return f"it takes up to {CUDA_ROWS} rows, and x has {_segments.rows_of(x)}"
    if len(lora_A) > CUDA_ADAPTERS:
        return f"it takes up to {CUDA_ADAPTERS} adapters, and there are {len(lora_A)}"
    return None


multi_lora_forward.native_cuda(lambda *args: _check.no_float64(*args) or _decodes_only(*args))


@multi_lora_forward.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(x, weight, bias, lora_A, lora_B, adapter_index, scalings, ps, seeds):
    from ..kernels.multi_lora_forward import multi_lora_forward

    rows, dropout = _check.rows("multi_lora_forward", "x", x), _segments.dropout(ps)
    y, s, mask = multi_lora_forward(rows, weight, bias, lora_A, lora_B, adapter_index, scalings, *dropout, seeds)
    return y.view(*x.shape[:-1], weight.shape[0]), s, mask
