"""dS = scaling * dY B and dB = scaling * dY^T s in one launch that reads dY once.

A program owns a stripe of rows and a block of columns, and uses each tile of dY twice: for the block's part of the
stripe's dS, and for the stripe's part of the block's dB. What is a part only is added up by _reduce.
"""

import torch
import triton
import triton.language as tl

from . import _tiles
from ._dot import cut, dot, dot_parts, precision
from ._gemm import load_2d, store_2d
from ._reduce import add_partials, last_of, tickets


@triton.jit
def _lora_ds_db(
    dy_ptr, b_ptr, s_ptr, ds_ptr, db_ptr, ds_parts_ptr, db_parts_ptr, ticket_ptr,
    M, N, r, stripe_rows, dy_m, dy_n, b_n, b_r, s_m, s_r, scaling,
    NEED_DS: tl.constexpr, NEED_DB: tl.constexpr, DS_IN_PARTS: tl.constexpr, DB_IN_PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block, stripe, rank_block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks, stripes = tl.num_programs(0), tl.num_programs(1)
    column, rank = block * BN + tl.arange(0, BN), rank_block * BR + tl.arange(0, BR)
    first = stripe * stripe_rows
    end = tl.minimum(first + stripe_rows, M)
    matrix_s, matrix_b = tl.cast(M, tl.int64) * r, tl.cast(N, tl.int64) * r
    if NEED_DS:
        b = load_2d(b_ptr, column, rank, b_n, b_r, N, r)
        # Of a type only: B is cut into parts once, before the loop.
        b_parts = cut(b, tl.zeros((1,), dy_ptr.dtype.element_ty), PRECISION)
    db = tl.zeros((BN, BR), tl.float32)
    for m in range(first, end, BM):
        row = m + tl.arange(0, BM)
        dy = load_2d(dy_ptr, row, column, dy_m, dy_n, M, N)
        if NEED_DS:
            ds = dot_parts(dy, b_parts, b.dtype, tl.zeros((BM, BR), tl.float32), PRECISION) * scaling
            if DS_IN_PARTS:
                store_2d(ds_parts_ptr + block * matrix_s, ds, row, rank, r, end, r)
            else:
                store_2d(ds_ptr, ds, row, rank, r, end, r)
        if NEED_DB:
            s = load_2d(s_ptr, row, rank, s_m, s_r, end, r)  # 0 past the stripe, where dY is another program's
            db = dot(dy.T, s, db, PRECISION)
    if NEED_DB:
        if DB_IN_PARTS:
            store_2d(db_parts_ptr + stripe * matrix_b, db * scaling, column, rank, r, N, r)
        else:
            store_2d(db_ptr, db * scaling, column, rank, r, N, r)

    ticket_ptr += rank_block * (stripes + blocks)
    if NEED_DS and DS_IN_PARTS:
        if last_of(ticket_ptr + stripe, blocks):
            for m in range(first, end, BM):
                row = m + tl.arange(0, BM)
                inside = (row[:, None] < end) & (rank[None, :] < r)
                parts = ds_parts_ptr + row[:, None].to(tl.int64) * r + rank[None, :]
                store_2d(ds_ptr, add_partials(parts, inside, blocks, matrix_s, BM, BR), row, rank, r, end, r)
    if NEED_DB and DB_IN_PARTS:
        if last_of(ticket_ptr + stripes + block, stripes):
            inside = (column[:, None] < N) & (rank[None, :] < r)
            parts = db_parts_ptr + column[:, None].to(tl.int64) * r + rank[None, :]
            store_2d(db_ptr, add_partials(parts, inside, stripes, matrix_b, BN, BR), column, rank, r, N, r)


def lora_ds_db(dY, lora_B, s, scaling, need_dS, need_dB):
    """dY [M, N], lora_B [N, r], s [M, r], any strides -> dS [M, r] and dB [N, r]; empty [0, r] if not needed."""
    (M, N), r = dY.shape, s.shape[1]
    dS = s.new_empty(M if need_dS else 0, r)
    dB = lora_B.new_empty(N if need_dB else 0, r)
    if M == 0 or N == 0 or r == 0:
        return dS.zero_(), dB.zero_()

    def launch(config):
        BM, BN, BR = (_tiles.shrunk(*pair) for pair in ((config.BM, M), (config.BO, N), (config.BR, r)))
        # The parts of so much of B would spill.
        warps = 8 if BN > 128 and BR > 16 and lora_B.dtype != dY.dtype else config.warps
        blocks, rank_blocks = _tiles.cdiv(N, BN), _tiles.cdiv(r, BR)
        stripe_rows, stripes = _tiles.split(M, BM, blocks * rank_blocks, dY.device)
        parts = dict(dtype=torch.float32, device=dY.device)
        dS_parts = torch.empty(blocks if need_dS and blocks > 1 else 0, M, r, **parts)
        dB_parts = torch.empty(stripes if need_dB and stripes > 1 else 0, N, r, **parts)
        _lora_ds_db[(blocks, stripes, rank_blocks)](
            dY, lora_B, s, dS, dB, dS_parts, dB_parts, tickets((blocks + stripes) * rank_blocks, dY.device),
            M, N, r, stripe_rows, *dY.stride(), *lora_B.stride(), *s.stride(), scaling,
            NEED_DS=need_dS, NEED_DB=need_dB, DS_IN_PARTS=blocks > 1, DB_IN_PARTS=stripes > 1,
            BM=BM, BN=BN, BR=BR, PRECISION=precision(dY.device, dY.dtype, lora_B.dtype, s.dtype),
            num_warps=warps, num_stages=config.stages,
        )  # fmt: skip

    if need_dS or need_dB:
        _tiles.launch("lora_ds_db", launch, (dY, lora_B, s), (M, N, r), need_dS, need_dB, dY.stride(1) == 1)
    return dS, dB
