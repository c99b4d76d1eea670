"""s = drop(x) A^T, and the packed mask of the dropout: the down-projection of LoRA, one pass over x.

x [M, K], lora_A [r, K] -> s [M, r] in the wider dtype of the two, mask uint8 [M, ceil(K/8)] (philox.py gives its
bits), or [0, ceil(K/8)] if p is 0. Source of LoRA: Hu et al., arXiv:2106.09685.

Several projections of one x may be stacked as groups. With seed [G], where G divides r, group g has rows g*r/G ..
(g+1)*r/G of lora_A and the same columns of s, and draws rows g*M .. (g+1)*M of mask [G*M, ceil(K/8)] from seed[g].
"""

import torch

from .._op import Op
from . import _check, _triton, philox
from .lora_da import lora_da

lora_shrink = Op("lora_shrink(Tensor x, Tensor lora_A, float p, Tensor? seed) -> (Tensor s, Tensor mask)")


@lora_shrink.check
def _(x, lora_A, p, seed):
    op = "lora_shrink"
    _check.matrix(op, x=x, lora_A=lora_A)
    _check.features(op, x, "lora_A", lora_A)
    _check.rank(op, lora_A)
    _check.floating(op, "x", x)
    _check.adapter_dtype(op, "x", x, "lora_A", lora_A)
    _check.dropout_p(op, p)
    if (seed is None) != (p == 0):
        raise ValueError(f"{op}: seed={seed} with p={p}: give a seed if and only if p > 0")
    if seed is not None and (seed.dtype != torch.int64 or seed.dim() != 1):
        raise TypeError(f"{op}: seed must be an int64 tensor [G], got {seed.dtype} {tuple(seed.shape)}")
    if seed is not None and (seed.numel() == 0 or lora_A.shape[0] % seed.numel() != 0):
        raise ValueError(
            f"{op}: seed has {seed.numel()} elements, one per group; the {lora_A.shape[0]} rows of lora_A must "
            "divide into as many groups of one size"
        )
    _check.same_device(op, "x", x, lora_A=lora_A, seed=seed)


def _groups(seed):
    return 1 if seed is None else seed.shape[0]


@lora_shrink.fake
def _(x, lora_A, p, seed):
    s = x.new_empty(x.shape[0], lora_A.shape[0], dtype=torch.promote_types(x.dtype, lora_A.dtype))
    return s, x.new_empty(x.shape[0] * _groups(seed) if p > 0 else 0, (x.shape[1] + 7) // 8, dtype=torch.uint8)


def _shrunk(x, lora_A, p, seed, wide):
    """s in `wide` and the mask, group by group."""
    out = torch.promote_types(x.dtype, lora_A.dtype)
    x = x.to(wide)
    if p == 0:
        return (x @ lora_A.to(wide).t()).to(out), x.new_empty(0, (x.shape[1] + 7) // 8, dtype=torch.uint8)
    masks = [philox.packed_mask(*x.shape, p, one) for one in seed.split(1)]
    parts = [
        philox.dropped(x, mask, p) @ A.to(wide).t() for mask, A in zip(masks, lora_A.chunk(_groups(seed)), strict=True)
    ]
    return torch.cat(parts, dim=1).to(out), torch.cat(masks)


@lora_shrink.flops
def _(x, lora_A, p, seed):
    return 2 * x.numel() * lora_A.shape[0]


@lora_shrink.reference
def reference(x, lora_A, p, seed):
    out = torch.promote_types(x.dtype, lora_A.dtype)
    return _shrunk(x, lora_A, p, seed, torch.promote_types(out, torch.float32))


@lora_shrink.gradients
def _(needs, grads, args, outputs):
    (x, lora_A, p, seed), (mask,) = args, outputs
    dX, dA = shrink_gradients(needs[0], needs[1], grads[0], x, lora_A, p, mask, _groups(seed))
    return dX, dA, None, None


def shrink_gradients(need_dX, need_dA, ds, x, lora_A, p, mask, groups=1):
    """dX = keep * (ds A) / (1 - p) and dA = ds^T drop(x), or None, of every group and its mask."""
    dS, A = ds.chunk(groups, dim=1), lora_A.chunk(groups)
    masks = mask.chunk(groups) if p > 0 else (mask,)
    dX = dA = None
    if need_dX:
        parts = (philox.dropped(d @ a.to(d.dtype), m, p) for d, a, m in zip(dS, A, masks, strict=True))
        dX = sum(parts).to(x.dtype)
    if need_dA:
        dA = torch.cat([lora_da(d, x, m, p, lora_A.dtype) for d, m in zip(dS, masks, strict=True)])
    return dX, dA


@lora_shrink.kernel("blas")
def _(x, lora_A, p, seed):
    return _shrunk(x, lora_A, p, seed, torch.promote_types(x.dtype, lora_A.dtype))


lora_shrink.native_cpu(_check.no_float64, checks=True)
lora_shrink.native_cuda(_check.no_float64)


@lora_shrink.kernel("triton", ("cuda",), _triton.why_no_triton, _triton.rejects, interpreted=("cpu",))
def _(x, lora_A, p, seed):
    from ..kernels.lora_shrink import lora_shrink

    return lora_shrink(x, lora_A, philox.threshold(p), philox.scale(p), seed)
