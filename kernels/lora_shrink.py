"""s = drop(x) A^T and the packed masks, in one launch that reads x once, for one projection or several stacked ones.

A program owns a block of rows, of ranks and, where there are few rows, a part of K: a split sum is added by _reduce.
"""

from dataclasses import replace

import torch
import triton
import triton.language as tl

from . import _tiles
from ._dot import dot, precision
from ._gemm import load_2d
from ._philox import drop
from ._reduce import add_partials, last_of, tickets


@triton.jit
def _lora_shrink(
    x_ptr, a_ptr, seed_ptr, s_ptr, mask_ptr, parts_ptr, ticket_ptr,
    M, K, R, r, part_k, x_m, x_k, a_r, a_k, threshold, scale,
    DROPOUT: tl.constexpr, GROUPS: tl.constexpr, IN_PARTS: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row_block, rank_block, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, rank = row_block.to(tl.int64) * BM + tl.arange(0, BM), rank_block * BR + tl.arange(0, BR)
    first = part * part_k
    end = tl.minimum(first + part_k, K)
    # A tuple, since each group has its own accumulator and mask: group g owns rows g*r .. (g+1)*r of A.
    accs = ()
    for _ in tl.static_range(GROUPS):
        accs = accs + (tl.zeros((BM, BR), tl.float32),)
    for k0 in range(first, end, BK):
        k = k0 + tl.arange(0, BK)
        x = load_2d(x_ptr, row, k, x_m, x_k, M, K)
        sums = ()
        for g in tl.static_range(GROUPS):
            kept = x
            if DROPOUT:
                group_mask = mask_ptr + g * (tl.cast(M, tl.int64) * tl.cdiv(K, 8))
                kept = drop(x, tl.load(seed_ptr + g), group_mask, row, k0, M, K, threshold, rank_block, BK)
            a = load_2d(a_ptr + g * tl.cast(r, tl.int64) * a_r, k, rank, a_k, a_r, K, r)
            sums = sums + (dot(kept, a, accs[g], PRECISION),)
        accs = sums
    for g in tl.static_range(GROUPS):
        s = accs[g]
        if DROPOUT:
            s *= scale
        at = row[:, None] * R + g * r + rank[None, :]
        inside = (row[:, None] < M) & (rank[None, :] < r)
        if IN_PARTS:
            tl.store(parts_ptr + part * (tl.cast(M, tl.int64) * R) + at, s, mask=inside)
        else:
            tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=inside)
    if IN_PARTS:
        if last_of(ticket_ptr + row_block * tl.num_programs(1) + rank_block, tl.num_programs(2)):
            for g in tl.static_range(GROUPS):
                at = row[:, None] * R + g * r + rank[None, :]
                inside = (row[:, None] < M) & (rank[None, :] < r)
                s = add_partials(parts_ptr + at, inside, tl.num_programs(2), tl.cast(M, tl.int64) * R, BM, BR)
                tl.store(s_ptr + at, s.to(s_ptr.dtype.element_ty), mask=inside)


def _for_groups(config, r, dtype, arch):
    """Smaller tiles: each group has an accumulator and a tile of A of its own, which would spill or not fit."""
    exact = dtype == torch.float32  # products off the tensor cores
    if exact:
        config = replace(config, BM=max(16, config.BM // 2))
    if r > 16:
        warps = 8 if exact and isinstance(arch, int) else config.warps  # of AMD's, 8 have 64 lanes and too few to load
        config = replace(config, BO=min(config.BO, 32), warps=warps, stages=2)
    return config


def lora_shrink(x, lora_A, threshold, scale, seed):
    """x [M, K], lora_A [R, K], any strides; seed int64 [G], or None for no dropout -> s [M, R], mask [G*M, K/8]."""
    (M, K), R = x.shape, lora_A.shape[0]
    groups = 1 if seed is None else seed.numel()
    s = x.new_empty(M, R, dtype=torch.promote_types(x.dtype, lora_A.dtype))
    mask = x.new_empty(groups * M if seed is not None else 0, _tiles.cdiv(K, 8), dtype=torch.uint8)
    if M == 0 or K == 0:
        return s.zero_(), mask
    r = R // groups
    seed = None if seed is None else seed.contiguous()

    def launch(config):
        if groups > 1:
            config = _for_groups(config, r, x.dtype, _tiles.architecture(x.device))
        BM, BK, BR = (_tiles.shrunk(*pair) for pair in ((config.BM, M), (config.BO, K), (config.BR, r)))
        row_blocks, rank_blocks = _tiles.cdiv(M, BM), _tiles.cdiv(r, BR)
        part_k, count = _tiles.split(K, BK, row_blocks * rank_blocks, x.device)
        parts = torch.empty(count if count > 1 else 0, M, R, dtype=torch.float32, device=x.device)
        _lora_shrink[(row_blocks, rank_blocks, count)](
            x, lora_A, seed, s, mask, parts, tickets(row_blocks * rank_blocks, x.device),
            M, K, R, r, part_k, *x.stride(), *lora_A.stride(), threshold, scale,
            DROPOUT=seed is not None, GROUPS=groups, IN_PARTS=count > 1, BM=BM, BK=BK, BR=BR,
            PRECISION=precision(x.device, x.dtype, lora_A.dtype), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("lora_shrink", launch, (x, lora_A), (M, K, R, groups), seed is not None, x.stride(1) == 1)
    return s, mask
