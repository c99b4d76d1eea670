"""The dropout stream in Triton; pypeft_fast/ops/philox.py defines it."""

import triton
import triton.language as tl


@triton.jit
def philox_4x32_7(counter, seed):
    """Four uint32 tensors from a 64-bit counter tensor and a 64-bit seed."""
    c0, c1 = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    c2, c3 = tl.zeros_like(c0), tl.zeros_like(c0)
    multiplier0 = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    multiplier1 = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(7):
        high0, low0 = tl.umulhi(c0, multiplier0), c0 * multiplier0
        high1, low1 = tl.umulhi(c2, multiplier1), c2 * multiplier1
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9).to(tl.uint32), (k1 + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _keep(word, half: tl.constexpr, threshold):
    return ((word >> (16 * half)) & 0xFFFF).to(tl.int32) >= threshold


@triton.jit
def keep_lanes(counter, seed, threshold):
    """For counters [R, C]: keep, int1 [R, 8C], and the packed bytes, int32 [R, C]."""
    w0, w1, w2, w3 = philox_4x32_7(counter, seed)
    l0, l1, l2, l3 = _keep(w0, 0, threshold), _keep(w0, 1, threshold), _keep(w1, 0, threshold), _keep(w1, 1, threshold)
    l4, l5, l6, l7 = _keep(w2, 0, threshold), _keep(w2, 1, threshold), _keep(w3, 0, threshold), _keep(w3, 1, threshold)
    # Each join adds an innermost axis. The joins therefore go from the highest bit of the lane number to the lowest.
    even = tl.join(tl.join(l0, l4), tl.join(l2, l6))
    odd = tl.join(tl.join(l1, l5), tl.join(l3, l7))
    keep = tl.join(even, odd).reshape(counter.shape[0], 8 * counter.shape[1])
    low = l0.to(tl.int32) + l1.to(tl.int32) * 2 + l2.to(tl.int32) * 4 + l3.to(tl.int32) * 8
    high = l4.to(tl.int32) + l5.to(tl.int32) * 2 + l6.to(tl.int32) * 4 + l7.to(tl.int32) * 8
    return keep, low + high * 16


@triton.jit
def drop(x, seed, mask_ptr, row, k0, M, K, threshold, rank_block, BK: tl.constexpr):
    """x where the stream of this seed keeps it; the first block of ranks stores the packed mask."""
    bytes_per_row = tl.cdiv(K, 8)
    byte = k0 // 8 + tl.arange(0, BK // 8)
    index = row[:, None] * bytes_per_row + byte[None, :]
    keep, packed = keep_lanes(index, seed, threshold)
    # Bits past the last column are 0: the last byte keeps its first K - 8 * byte bits.
    packed = packed & ((1 << tl.minimum(K - byte * 8, 8).to(tl.int32)) - 1)[None, :]
    if rank_block == 0:
        inside = (row[:, None] < M) & (byte[None, :] < bytes_per_row)
        tl.store(mask_ptr + index, packed.to(tl.uint8), mask=inside)
    return tl.where(keep, x, 0.0)


@triton.jit
def load_packed(mask_ptr, row, k, M, K, BK: tl.constexpr):
    """The bytes of the mask, uint8 [BM, BK / 8], of these rows and of BK columns from k on; k is a multiple of 8.

    Elements outside are 0.
    """
    bytes_per_row = tl.cdiv(K, 8)
    byte = k // 8 + tl.arange(0, BK // 8)
    inside = (row[:, None] < M) & (byte[None, :] < bytes_per_row)
    return tl.load(mask_ptr + row[:, None].to(tl.int64) * bytes_per_row + byte[None, :], mask=inside, other=0)


@triton.jit
def unpacked(packed, BM: tl.constexpr, BK: tl.constexpr):
    """keep, int1 [BM, BK], of the bytes of a mask, uint8 [BM, BK / 8]."""
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return bits.reshape(BM, BK) != 0


@triton.jit
def load_keep(mask_ptr, row, k, M, K, BM: tl.constexpr, BK: tl.constexpr):
    """keep, int1 [BM, BK], of these rows and of BK columns from k on; k is a multiple of 8. Elements outside are 0."""
    return unpacked(load_packed(mask_ptr, row, k, M, K, BK), BM, BK)
