"""Rows of several adapters: dS and the gradients of B in one pass over dY, the gradients of A in one over x.

A program owns a block of columns and a stripe of rows of one adapter, as in lora_ds_db and lora_da. An adapter's rows
begin a stripe of their own, so its sums do not depend on the other adapters' rows. An adapter with several stripes has
a partial sum for each of them, and the program that ends last adds these sums.
"""

import torch
import triton
import triton.language as tl

from . import _tiles
from ._adapters import KEPT, SCALING, THRESHOLD, B, integer, load_matrix, matrix, rank_of, real
from ._dot import cut, dot, dot_parts, precision
from ._gemm import load_2d, store_2d
from ._philox import load_keep
from ._reduce import add_partials, last_of, tickets
from ._segments import first_partial, groups, part_of, partials, rows_at, slots


@triton.jit
def chosen(pointers, adapter, n: tl.constexpr, dtype: tl.constexpr):
    """pointers[adapter] of a tuple of n: the gradients are arguments, because each call has new ones."""
    address = pointers[0].to(tl.int64)
    for at in tl.static_range(1, n):
        address = tl.where(adapter == at, pointers[at].to(tl.int64), address)
    return tl.multiple_of(address.to(tl.pointer_type(dtype)), 16)


@triton.jit
def _stripe_of(
    slot, starts_ptr, table_ptr, n, stripe_rows, rank0, STEP: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """(adapter, its rank, number of the stripe, first and end of the stripe's rows in `order`, first of the adapter's
    rows, number of the adapter's stripes) of a slot. The adapter is -1 if the program has no work: for rows without an
    adapter, for an adapter whose rank is at most rank0, and for a slot between two adapters. The first stripe of an
    adapter without rows has work, because it writes zeros."""
    adapter, stripe, all_first, all_end = part_of(slot, starts_ptr, n, stripe_rows, GROUPS)
    r = rank_of(table_ptr, tl.maximum(adapter, 0), STEP)
    first = all_first + stripe * stripe_rows
    end = tl.minimum(first + stripe_rows, all_end)
    idle = (rank0 >= r) | ((stripe > 0) & (first >= end))
    return tl.where(idle, -1, adapter), r, stripe, first, end, all_first, tl.cdiv(all_end - all_first, stripe_rows)


@triton.jit
def _multi_ds_db(
    dy_ptr, table_ptr, s_ptr, order_ptr, starts_ptr, ds_ptr, db_ptrs, ds_parts_ptr, db_parts_ptr, ticket_ptr,
    M, N, R, n: tl.constexpr, stripe_rows, dy_m, dy_n, s_m, s_r,
    NEED_DS: tl.constexpr, NEED_DB: tl.constexpr, IN_PARTS: tl.constexpr, B_DTYPE: tl.constexpr, ALIGN: tl.constexpr,
    STEP: tl.constexpr, GROUPS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, slot, rank_block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks, column, rank = tl.num_programs(0), block * BN + tl.arange(0, BN), rank_block * BR + tl.arange(0, BR)
    adapter, r, stripe, first, end, all_first, stripes = _stripe_of(
        slot, starts_ptr, table_ptr, n, stripe_rows, rank_block * BR, STEP, GROUPS
    )
    if adapter < 0:
        return
    scaling, matrix_s, matrix_b = real(table_ptr, adapter, SCALING), tl.cast(M, tl.int64) * R, tl.cast(N, tl.int64) * R
    if NEED_DS:
        b_ptr, b_n, b_r = matrix(table_ptr, adapter, B, B_DTYPE, ALIGN)
        b = load_matrix(b_ptr, column, rank, b_n, b_r, N, r, ALIGN)
        # Of a type only: B is cut into parts once, before the loop.
        b_parts = cut(b, tl.zeros((1,), dy_ptr.dtype.element_ty), PRECISION)
    db = tl.zeros((BN, BR), tl.float32)
    for at in range(first, end, BM):
        row = rows_at(order_ptr, at, end, M, BM)
        dy = load_2d(dy_ptr, row, column, dy_m, dy_n, M, N)
        if NEED_DS:
            ds = dot_parts(dy, b_parts, b.dtype, tl.zeros((BM, BR), tl.float32), PRECISION) * scaling
            if IN_PARTS:
                store_2d(ds_parts_ptr + block * matrix_s, ds, row, rank, R, M, r)
            else:
                store_2d(ds_ptr, ds, row, rank, R, M, r)
        if NEED_DB:
            s = load_2d(s_ptr, row, rank, s_m, s_r, M, r)
            db = dot(dy.T, s, db, PRECISION)
    parts_ptr = db_parts_ptr + first_partial(all_first, stripe_rows) * matrix_b
    if NEED_DB:
        db_ptr = chosen(db_ptrs, adapter, n, B_DTYPE)
        if stripes > 1:
            store_2d(parts_ptr + stripe * matrix_b, db * scaling, column, rank, R, N, r)
        else:
            store_2d(db_ptr, db * scaling, column, rank, r, N, r)

    ticket_ptr += rank_block * (tl.num_programs(1) * (blocks + 1))
    if NEED_DS and IN_PARTS:
        if last_of(ticket_ptr + slot, blocks):
            for at in range(first, end, BM):
                row = rows_at(order_ptr, at, end, M, BM)
                inside = (row[:, None] < M) & (rank[None, :] < r)
                parts = ds_parts_ptr + row[:, None] * R + rank[None, :]
                store_2d(ds_ptr, add_partials(parts, inside, blocks, matrix_s, BM, BR), row, rank, R, M, r)
    if NEED_DB:
        if stripes > 1:
            ticket_ptr += tl.num_programs(1) + (slot - stripe) * blocks + block
            if last_of(ticket_ptr, stripes):
                inside = (column[:, None] < N) & (rank[None, :] < r)
                parts = parts_ptr + column[:, None].to(tl.int64) * R + rank[None, :]
                store_2d(db_ptr, add_partials(parts, inside, stripes, matrix_b, BN, BR), column, rank, r, N, r)


@triton.jit
def _multi_da(
    ds_ptr, x_ptr, mask_ptr, table_ptr, order_ptr, starts_ptr, da_ptrs, parts_ptr, ticket_ptr,
    M, K, R, n: tl.constexpr, stripe_rows, x_m, x_k,
    DROPOUT: tl.constexpr, A_DTYPE: tl.constexpr, STEP: tl.constexpr, GROUPS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    block, slot, rank_block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks, column, rank = tl.num_programs(0), block * BK + tl.arange(0, BK), rank_block * BR + tl.arange(0, BR)
    adapter, r, stripe, first, end, all_first, stripes = _stripe_of(
        slot, starts_ptr, table_ptr, n, stripe_rows, rank_block * BR, STEP, GROUPS
    )
    if adapter < 0:
        return
    drops = integer(table_ptr, adapter, THRESHOLD) >= 0
    da = tl.zeros((BK, BR), tl.float32)
    for at in range(first, end, BM):
        row = rows_at(order_ptr, at, end, M, BM)
        x = load_2d(x_ptr, row, column, x_m, x_k, M, K)
        if DROPOUT:
            if drops:
                x = tl.where(load_keep(mask_ptr, row, block * BK, M, K, BM, BK), x, 0.0)
        ds = load_2d(ds_ptr, row, rank, R, 1, M, r)
        da = dot(x.T, ds, da, PRECISION)
    da = da.T
    if DROPOUT:
        da *= real(table_ptr, adapter, KEPT)
    matrix_a = tl.cast(R, tl.int64) * K
    da_ptr = chosen(da_ptrs, adapter, n, A_DTYPE)
    if stripes > 1:
        parts_ptr += first_partial(all_first, stripe_rows) * matrix_a
        store_2d(parts_ptr + stripe * matrix_a, da, rank, column, K, r, K)
        ticket_ptr += (rank_block * tl.num_programs(1) + slot - stripe) * blocks + block
        if last_of(ticket_ptr, stripes):
            inside = (rank[:, None] < r) & (column[None, :] < K)
            parts = parts_ptr + rank[:, None].to(tl.int64) * K + column[None, :]
            store_2d(da_ptr, add_partials(parts, inside, stripes, matrix_a, BR, BK), rank, column, K, r, K)
    else:
        store_2d(da_ptr, da, rank, column, K, r, K)


def _stripes(config, M, columns, R, n, device):
    """(BM, BO, BR, blocks of columns, rows of a stripe, slots, blocks of ranks)"""
    BM = _tiles.shrunk(config.BM, _tiles.cdiv(M, n))  # many adapters have few rows each
    BO, BR = _tiles.shrunk(config.BO, columns), _tiles.shrunk(config.BR, R)
    blocks, rank_blocks = _tiles.cdiv(columns, BO), _tiles.cdiv(R, BR)
    stripe_rows, _ = _tiles.split(M, BM, blocks * rank_blocks, device)
    return BM, BO, BR, blocks, stripe_rows, slots(M, n, stripe_rows), rank_blocks


def ds_db(dY, lora_B, s, order, starts, known, need_dS, need_dB):
    """dY [M, N], s [M, R], any strides -> dS [M, R], written at the rows of adapters up to their ranks, and the list of
    gradients of lora_B; empty ones [0, R] and [0] if not needed."""
    (M, N), R, n = dY.shape, s.shape[1], len(lora_B)
    dS = s.new_empty(M if need_dS else 0, R)
    dB = tuple(up.new_empty(up.shape if need_dB else 0) for up in lora_B)
    if M == 0 or N == 0:
        return dS.zero_(), [up.zero_() for up in dB]

    def launch(config):
        BM, BN, BR, blocks, stripe_rows, count, rank_blocks = _stripes(config, M, N, R, n, dY.device)
        # The parts of so much of B would spill.
        warps = 8 if BN > 128 and BR > 16 and lora_B[0].dtype != dY.dtype else config.warps
        parts = dict(dtype=torch.float32, device=dY.device)
        dS_parts = torch.empty(blocks if need_dS and blocks > 1 else 0, M, R, **parts)
        dB_parts = torch.empty(partials(M, stripe_rows) if need_dB else 0, N, R, **parts)
        _multi_ds_db[(blocks, count, rank_blocks)](
            dY, known.table, s, order, starts, dS, dB if need_dB else None, dS_parts, dB_parts,
            tickets(count * (blocks + 1) * rank_blocks, dY.device), M, N, R, n, stripe_rows, *dY.stride(), *s.stride(),
            NEED_DS=need_dS, NEED_DB=need_dB, IN_PARTS=blocks > 1, B_DTYPE=_tiles.element(lora_B[0].dtype),
            ALIGN=known.align_B, STEP=known.step, GROUPS=groups(n), BM=BM, BN=BN, BR=BR,
            PRECISION=precision(dY.device, dY.dtype, lora_B[0].dtype, s.dtype),
            num_warps=warps, num_stages=config.stages,
        )  # fmt: skip

    sizes, options = (M, N, R, n), (need_dS, need_dB, dY.stride(1) == 1, known.align_B, known.step)
    _tiles.launch("lora_ds_db, segments", launch, (dY, lora_B[0], s), sizes, *options)
    return dS, list(dB)


def da(dS, x, mask, lora_A, order, starts, known):
    """dS [M, R] from ds_db, x [M, K], any strides, mask [M, K/8] or None -> a list of the gradients of lora_A."""
    (M, K), R, n = x.shape, dS.shape[1], len(lora_A)
    dA = tuple(one.new_empty(one.shape) for one in lora_A)
    if M == 0 or K == 0:
        return [one.zero_() for one in dA]

    def launch(config):
        BM, BK, BR, blocks, stripe_rows, count, rank_blocks = _stripes(config, M, K, R, n, x.device)
        parts = torch.empty(partials(M, stripe_rows), R, K, dtype=torch.float32, device=x.device)
        _multi_da[(blocks, count, rank_blocks)](
            dS, x, mask, known.table, order, starts, dA, parts, tickets(count * blocks * rank_blocks, x.device),
            M, K, R, n, stripe_rows, *x.stride(),
            DROPOUT=mask is not None, A_DTYPE=_tiles.element(lora_A[0].dtype), STEP=known.step, GROUPS=groups(n),
            BM=BM, BK=BK, BR=BR, PRECISION=precision(x.device, x.dtype, dS.dtype),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    options = mask is not None, x.stride(1) == 1, known.step
    _tiles.launch("lora_da, segments", launch, (x, dS), (M, K, R, n), *options)
    return list(dA)
