"""The dropout stream: Philox4x32 with 7 rounds, the same bits on every backend.

Element (m, k) of an x of K columns lies in byte m*K8/8 + k//8 of the packed mask, K8 = 8*ceil(K/8). That byte's index
(64 bits, low word first) is the Philox counter, the seed (64 bits, low word first) the key; the 128 bits of output
are eight 16-bit lanes, and lane k%8 decides: keep iff lane >= T, T = round(p * 65536). Kept values are scaled by
65536 / (65536 - T). Bit k%8 of the byte is 1 where kept; bits past the last column are 0.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

import torch

_MULTIPLIER = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def philox_4x32_7(counter, key):
    """Four words from four counter words and two key words, each an int64 tensor (or int) in [0, 2**32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(7):
        # int64 products wrap modulo 2**64, which keeps every bit of a 32x32-bit product.
        product0, product1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & _WORD) ^ c1 ^ k0,
            product1 & _WORD,
            (product0 >> 32 & _WORD) ^ c3 ^ k1,
            product0 & _WORD,
        )
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def draw_seed(device, generator=None, count=1):
    """An int64 tensor [count] from the torch generator of the device: it obeys manual_seed and does not synchronise."""
    return torch.randint(2**63 - 1, (count,), dtype=torch.int64, device=device, generator=generator)


def threshold(p: float) -> int:
    """T: a 16-bit lane below it drops its element."""
    return round(p * 65536)


def scale(p: float) -> float:
    """What a kept element is multiplied by: exactly 1 / (the probability of being kept)."""
    return 65536 / (65536 - threshold(p))


def packed_mask(rows: int, columns: int, p: float, seed):
    """uint8 [rows, ceil(columns/8)]: bit k%8 of byte k//8 is 1 where element (m, k) is kept."""
    bytes_per_row = (columns + 7) // 8
    index = torch.arange(rows * bytes_per_row, device=seed.device)
    zero = torch.zeros_like(index)
    words = philox_4x32_7((index & _WORD, index >> 32, zero, zero), (seed & _WORD, seed >> 32 & _WORD))
    lanes = torch.stack([words[j // 2] >> 16 * (j % 2) & 0xFFFF for j in range(8)], dim=1)
    keep = (lanes >= threshold(p)).view(rows, bytes_per_row * 8)
    keep[:, columns:] = False
    bits = keep.view(rows, bytes_per_row, 8).byte() << torch.arange(8, device=seed.device, dtype=torch.uint8)
    return bits.sum(-1).to(torch.uint8)


def unpack(mask, columns: int):
    """bool [rows, columns] of a packed mask [rows, ceil(columns/8)]."""
    bits = mask.unsqueeze(-1) >> torch.arange(8, device=mask.device, dtype=torch.uint8) & 1
    return bits.flatten(1)[:, :columns].bool()


def dropped(x, mask, p: float):
    """drop(x): x where the packed mask keeps it, times scale(p), and 0 elsewhere; x itself if p is 0."""
    return x if p == 0 else torch.where(unpack(mask, x.shape[1]), x * scale(p), 0)
