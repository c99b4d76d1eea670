"""dA = dS^T drop(x) in one launch that reads x once: a program owns a block of columns and a stripe of rows."""

import torch
import triton
import triton.language as tl

from . import _tiles
from ._dot import dot, precision
from ._gemm import load_2d, store_2d
from ._philox import load_keep
from ._reduce import add_partials, last_of, tickets


@triton.jit
def _lora_da(
    ds_ptr, x_ptr, mask_ptr, da_ptr, parts_ptr, ticket_ptr, M, K, r, stripe_rows, ds_m, ds_r, x_m, x_k, scale,
    DROPOUT: tl.constexpr, IN_PARTS: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, stripe, rank_block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks, stripes = tl.num_programs(0), tl.num_programs(1)
    column, rank = block * BK + tl.arange(0, BK), rank_block * BR + tl.arange(0, BR)
    first = stripe * stripe_rows
    end = tl.minimum(first + stripe_rows, M)
    # The long axis first, as tensor cores want it: the transpose of dA.
    da = tl.zeros((BK, BR), tl.float32)
    for m in range(first, end, BM):
        row = m + tl.arange(0, BM)
        x = load_2d(x_ptr, row, column, x_m, x_k, end, K)
        if DROPOUT:
            x = tl.where(load_keep(mask_ptr, row, block * BK, end, K, BM, BK), x, 0.0)
        ds = load_2d(ds_ptr, row, rank, ds_m, ds_r, end, r)
        da = dot(x.T, ds, da, PRECISION)
    da = da.T * scale
    if IN_PARTS:
        matrix = tl.cast(r, tl.int64) * K
        store_2d(parts_ptr + stripe * matrix, da, rank, column, K, r, K)
        if last_of(ticket_ptr + rank_block * blocks + block, stripes):
            inside = (rank[:, None] < r) & (column[None, :] < K)
            parts = parts_ptr + rank[:, None].to(tl.int64) * K + column[None, :]
            store_2d(da_ptr, add_partials(parts, inside, stripes, matrix, BR, BK), rank, column, K, r, K)
    else:
        store_2d(da_ptr, da, rank, column, K, r, K)


def lora_da(dS, x, mask, scale, dtype):
    """dS [M, r], x [M, K], any strides; scale None for no dropout -> dA [r, K] in dtype."""
    (M, K), r = x.shape, dS.shape[1]
    dA = x.new_empty(r, K, dtype=dtype)
    if M == 0 or dA.numel() == 0:
        return dA.zero_()
    mask = mask.contiguous()

    def launch(config):
        BM, BK, BR = (_tiles.shrunk(*pair) for pair in ((config.BM, M), (config.BO, K), (config.BR, r)))
        blocks, rank_blocks = _tiles.cdiv(K, BK), _tiles.cdiv(r, BR)
        stripe_rows, stripes = _tiles.split(M, BM, blocks * rank_blocks, x.device)
        parts = torch.empty(stripes if stripes > 1 else 0, r, K, dtype=torch.float32, device=x.device)
        _lora_da[(blocks, stripes, rank_blocks)](
            dS, x, mask, dA, parts, tickets(blocks * rank_blocks, x.device), M, K, r, stripe_rows,
            *dS.stride(), *x.stride(), 1.0 if scale is None else scale,
            DROPOUT=scale is not None, IN_PARTS=stripes > 1, BM=BM, BK=BK, BR=BR,
            PRECISION=precision(x.device, x.dtype, dS.dtype), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("lora_da", launch, (x, dS), (M, K, r), scale is not None, x.stride(1) == 1)
    return dA
