"""s = drop(x) A^T and the packed mask for rows of several adapters, in one launch that reads x once.

A program has rows of one adapter, taken by their numbers; x is not copied. Rows without an adapter get zeros.
"""

import torch
import triton
import triton.language as tl

from . import _tiles
from ._adapters import KEPT, RANK, THRESHOLD, A, integer, load_transposed, matrix, real
from ._dot import dot, precision
from ._gemm import load_2d
from ._philox import drop
from ._reduce import add_partials, last_of, tickets
from ._segments import groups, part_of, rows_at, slots


@triton.jit
def _multi_shrink(
    x_ptr, table_ptr, seeds_ptr, order_ptr, starts_ptr, s_ptr, mask_ptr, parts_ptr, ticket_ptr,
    M, K, R, n, part_k, x_m, x_k, seeds_n,
    DROPOUT: tl.constexpr, IN_PARTS: tl.constexpr, ALIGN: tl.constexpr, GROUPS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    slot, rank_block, part_of_k = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    adapter, part, first, end = part_of(slot, starts_ptr, n, BM, GROUPS)
    first += part * BM
    if first >= end:
        return
    row, rank = rows_at(order_ptr, first, end, M, BM), rank_block * BR + tl.arange(0, BR)
    first_k = part_of_k * part_k
    end_k = tl.minimum(first_k + part_k, K)
    known = tl.maximum(adapter, 0)
    r = tl.where(adapter < 0, 0, integer(table_ptr, known, RANK)).to(tl.int32)
    threshold = tl.where(adapter < 0, -1, integer(table_ptr, known, THRESHOLD)).to(tl.int32)
    if DROPOUT:
        if threshold < 0:  # no dropout: the mask is 0
            for k0 in range(first_k, end_k, BK):
                byte = k0 // 8 + tl.arange(0, BK // 8)
                inside = (row[:, None] < M) & (byte[None, :] < tl.cdiv(K, 8))
                at = row[:, None] * tl.cdiv(K, 8) + byte[None, :]
                tl.store(mask_ptr + at, tl.zeros((BM, BK // 8), tl.uint8), mask=inside)
        seed = tl.load(seeds_ptr + known.to(tl.int64) * seeds_n)
    # Rows without an adapter have rank 0: x is not read.
    needed = (rank_block * BR < r) | ((rank_block == 0) & (threshold >= 0))
    a_ptr, a_r, a_k = matrix(table_ptr, known, A, s_ptr.dtype.element_ty, ALIGN)
    s = tl.zeros((BM, BR), tl.float32)
    for k0 in range(first_k, tl.where(needed, end_k, first_k), BK):
        k = k0 + tl.arange(0, BK)
        x = load_2d(x_ptr, row, k, x_m, x_k, M, K)
        if DROPOUT:
            if threshold >= 0:
                x = drop(x, seed, mask_ptr, row, k0, M, K, threshold, rank_block, BK)
        a = load_transposed(a_ptr, k, rank, a_k, a_r, K, r, ALIGN)
        s = dot(x, a, s, PRECISION)
    if DROPOUT:
        s *= real(table_ptr, known, KEPT)
    s = tl.where(rank[None, :] < r, s, 0.0)  # beyond the adapter's rank: infinity * 0
    at = row[:, None] * R + rank[None, :]
    inside = (row[:, None] < M) & (rank[None, :] < R)
    if IN_PARTS:
        matrix_s = tl.cast(M, tl.int64) * R
        tl.store(parts_ptr + part_of_k * matrix_s + at, s, mask=inside)
        if last_of(ticket_ptr + slot * tl.num_programs(1) + rank_block, tl.num_programs(2)):
            s = add_partials(parts_ptr + at, inside, tl.num_programs(2), matrix_s, BM, BR)
            tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=inside)
    else:
        tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=inside)


def shrink(x, lora_A, order, starts, known, seeds):
    """x [M, K], any strides; order and starts from _segments.grouped, None if M or K is 0; seeds int64 [n], or None for
    no dropout -> s [M, R], mask [M, K/8] or [0, K/8]."""
    (M, K), n, R, drops = x.shape, len(lora_A), max(one.shape[0] for one in lora_A), seeds is not None
    s = x.new_empty(M, R, dtype=lora_A[0].dtype)
    mask = x.new_empty(M if drops else 0, _tiles.cdiv(K, 8), dtype=torch.uint8)
    if M == 0 or K == 0:
        return s.zero_(), mask

    def launch(config):
        BM = _tiles.shrunk(config.BM, _tiles.cdiv(M, n))  # many adapters have few rows each
        BK, BR = _tiles.shrunk(config.BO, K), _tiles.shrunk(config.BR, R)
        warps = max(2, config.warps // 2) if BM == 16 else config.warps  # ptxas spills with 4 warps on sm_100
        row_slots, rank_blocks = slots(M, n, BM), _tiles.cdiv(R, BR)
        part_k, count = _tiles.split(K, BK, row_slots * rank_blocks, x.device)
        parts = torch.empty(count if count > 1 else 0, M, R, dtype=torch.float32, device=x.device)
        _multi_shrink[(row_slots, rank_blocks, count)](
            x, known.table, seeds, order, starts, s, mask, parts, tickets(row_slots * rank_blocks, x.device),
            M, K, R, n, part_k, *x.stride(), 0 if seeds is None else seeds.stride(0),
            DROPOUT=drops, IN_PARTS=count > 1, ALIGN=known.align_A, GROUPS=groups(n), BM=BM, BK=BK, BR=BR,
            PRECISION=precision(x.device, x.dtype, lora_A[0].dtype), num_warps=warps, num_stages=config.stages,
        )  # fmt: skip

    sizes = M, K, R, n
    _tiles.launch("lora_shrink, segments", launch, (x, lora_A[0]), sizes, drops, x.stride(1) == 1, known.align_A)
    return s, mask
