"""scale * keep o (s L) + bias in one launch: what the vendor's matrix product then adds the frozen product to."""

import torch
import triton
import triton.language as tl

from . import _tiles
from ._dot import dot, precision
from ._gemm import load_2d, load_row, store_2d, tile_origin
from ._philox import load_packed, unpacked


@triton.jit
def _low_rank(
    s_ptr, l_ptr, bias_ptr, mask_ptr, out_ptr, M, O, r, s_m, s_r, l_r, l_o, bias_o, scale,
    BM: tl.constexpr, BO: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    m, o = tile_origin(tl.program_id(0), M, O, BM, BO, GROUP)
    row, column = m + tl.arange(0, BM), o + tl.arange(0, BO)
    acc = tl.zeros((BM, BO), tl.float32)
    if mask_ptr is not None:  # requested with s and L, before the first wait
        packed = load_packed(mask_ptr, row, o, M, O, BO)
    if bias_ptr is not None:
        bias = load_row(bias_ptr, column, bias_o, O)
    for rank0 in tl.range(0, r, BR, num_stages=1):
        rank = rank0 + tl.arange(0, BR)
        s = load_2d(s_ptr, row, rank, s_m, s_r, M, r)
        acc = dot(s, load_2d(l_ptr, rank, column, l_r, l_o, r, O), acc, PRECISION)
    acc *= scale
    if mask_ptr is not None:
        acc = tl.where(unpacked(packed, BM, BO), acc, 0.0)
    if bias_ptr is not None:
        acc += bias
    store_2d(out_ptr, acc, row, column, O, M, O)


def low_rank(like, s, L, scale, bias=None, mask=None):
    """s [M, r], L [r, O], any strides; bias [O], mask uint8 [M, ceil(O/8)], each or None -> [M, O] in like's dtype."""
    (M, r), O = s.shape, L.shape[1]
    out = like.new_empty(M, O)
    if out.numel() == 0:
        return out
    mask = None if mask is None else mask.contiguous()

    def launch(config):
        BM, BO, BR = (_tiles.shrunk(*pair) for pair in ((config.BM, M), (config.BO, O), (config.BR, r)))
        _low_rank[(_tiles.cdiv(M, BM) * _tiles.cdiv(O, BO),)](
            s, L, bias, mask, out, M, O, r, *s.stride(), *L.stride(), 0 if bias is None else bias.stride(0), scale,
            BM=BM, BO=BO, BR=BR, GROUP=config.group,
            PRECISION=precision(out.device, out.dtype, s.dtype, L.dtype, rounded_to=out.dtype),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("low_rank", launch, (out, s, L), (M, O, r), bias is None, mask is None)
    return out


def add_product(out, a, b):
    """out + a @ b, in place, by the vendor's matrix product.

    A BLAS may begin its sums with out. In float32 the steps of the product would then lose low bits to a larger out.
    """
    return out.add_(a @ b) if out.dtype == torch.float32 else out.addmm_(a, b)
