"""s = drop(x) A^T and the packed mask: a program owns a block of rows and walks over K once; x is read once."""

import torch
import triton
import triton.language as tl

from ._philox import keep_lanes


@triton.jit
def _lora_shrink(
    x_ptr, a_ptr, seed_ptr, s_ptr, mask_ptr, M, K, r, x_m, x_k, a_r, a_k, threshold, scale,
    DROPOUT: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    rank = tl.program_id(1) * BR + tl.arange(0, BR)
    bytes_per_row = tl.cdiv(K, 8)
    if DROPOUT:
        seed = tl.load(seed_ptr)
    acc = tl.zeros((BM, BR), tl.float32)
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        inside = (row[:, None] < M) & (k[None, :] < K)
        x = tl.load(x_ptr + row[:, None] * x_m + k[None, :].to(tl.int64) * x_k, mask=inside, other=0.0)
        a_inside = (k[:, None] < K) & (rank[None, :] < r)
        a = tl.load(a_ptr + k[:, None].to(tl.int64) * a_k + rank[None, :].to(tl.int64) * a_r, mask=a_inside, other=0.0)
        if DROPOUT:
            byte = k0 // 8 + tl.arange(0, BK // 8)
            index = row[:, None] * bytes_per_row + byte[None, :]
            keep, packed = keep_lanes(index, seed, threshold)
            x = tl.where(keep, x, 0.0)
            # Bits past the last column are 0: the last byte keeps its first K - 8 * byte bits.
            packed = packed & ((1 << tl.minimum(K - byte * 8, 8).to(tl.int32)) - 1)[None, :]
            if tl.program_id(1) == 0:  # the programs of further ranks draw the same bits
                mask_inside = (row[:, None] < M) & (byte[None, :] < bytes_per_row)
                tl.store(mask_ptr + index, packed.to(tl.uint8), mask=mask_inside)
        # In float32: an fp32 adapter over a half-precision x keeps its bits, and the interpreter's bf16 dot is wrong.
        acc = tl.dot(x.to(tl.float32), a.to(tl.float32), acc, input_precision="ieee")
    if DROPOUT:
        acc = acc * scale
    s_inside = (row[:, None] < M) & (rank[None, :] < r)
    tl.store(s_ptr + row[:, None] * r + rank[None, :], acc.to(s_ptr.dtype.element_ty), mask=s_inside)


def lora_shrink(x, lora_A, threshold, scale, seed):
    """x [M, K], lora_A [r, K], any strides; seed int64 [1], or None for no dropout -> s [M, r], mask."""
    (M, K), r = x.shape, lora_A.shape[0]
    s = x.new_empty(M, r, dtype=torch.promote_types(x.dtype, lora_A.dtype))
    mask = x.new_empty(M if seed is not None else 0, triton.cdiv(K, 8), dtype=torch.uint8)
    BM, BK, BR = 32, 64, min(max(16, triton.next_power_of_2(r)), 128)
    if M:
        _lora_shrink[(triton.cdiv(M, BM), triton.cdiv(r, BR))](
            x, lora_A, seed, s, mask, M, K, r, *x.stride(), *lora_A.stride(), threshold, scale,
            DROPOUT=seed is not None, BM=BM, BK=BK, BR=BR,
        )  # fmt: skip
    return s, mask
