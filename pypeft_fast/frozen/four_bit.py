"""nf4 and fp4: a table of sixteen values, a 4-bit code per weight and a scale per block, as bitsandbytes stores them.

codes: uint8, ceil(N K / 2) elements of any shape, in row-major order; a byte holds two weights, the first in its high
half. absmax: float32, one per block of weights; the block size is a power of two, and a block may span rows. A weight
is table[code] * absmax. Nested: absmax is uint8 and stands for nested_map[absmax] * nested_absmax + offset, with
nested_map float32 [256], nested_absmax float32, one per 256 elements of absmax, and offset float32, one number.

Source: Dettmers et al., "QLoRA", arXiv:2305.14314, and bitsandbytes, whose CPU code these bytes equal.
"""

import functools

import torch

from .accepted import computes_in, has

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(
    sign * value / 12 for sign in (1.0, -1.0) for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
)  # a sign, two bits of exponent, one of mantissa
TABLES = {"nf4": NF4, "fp4": FP4}
BLOCK_SIZES = tuple(2**i for i in range(4, 17))
NESTED_BLOCK = 256


def _blocks(n, size):
    return -(-n // size)


def block_size(weights: int, blocks: int) -> int | None:
    """The block size, a power of two, that divides `weights` into `blocks` blocks; None if there is none."""
    if weights == 0 or blocks == 0:
        return BLOCK_SIZES[0] if weights == blocks else None
    size = max(BLOCK_SIZES[0], 1 << (_blocks(weights, blocks) - 1).bit_length())  # a smaller one gives more blocks
    return size if size <= BLOCK_SIZES[-1] and _blocks(weights, size) == blocks else None


def check(tensors, shape, dtype):
    computes_in(dtype)
    weights = shape[0] * shape[1]
    codes, absmax, *nested = tensors
    has("codes", codes, torch.uint8, _blocks(weights, 2), f"two weights a byte, of shape {shape}")
    if weights and block_size(weights, absmax.numel()) is None:
        sizes = f"{BLOCK_SIZES[0]} to {BLOCK_SIZES[-1]}"
        raise ValueError(
            f"Frozen: absmax has {absmax.numel()} elements; no block size that is a power of two from {sizes} "
            f"divides {weights} weights into that many blocks"
        )
    has("absmax", absmax, torch.uint8 if nested else torch.float32, absmax.numel(), "")
    if nested:
        nested_absmax, nested_map, offset = nested
        blocks = _blocks(absmax.numel(), NESTED_BLOCK)
        has("nested_absmax", nested_absmax, torch.float32, blocks, f"one for {NESTED_BLOCK} of absmax")
        has("nested_map", nested_map, torch.float32, 256, "one a byte")
        has("offset", offset, torch.float32, 1, "one number")


def _absmax(absmax, nested_absmax, nested_map, offset):
    scales = nested_absmax.repeat_interleave(NESTED_BLOCK)[: absmax.numel()]
    return nested_map[absmax.flatten().int()] * scales + offset.flatten()


def dequantize(table, tensors, shape, dtype):
    codes, absmax, *nested = tensors
    weights = shape[0] * shape[1]
    if weights == 0:
        return codes.new_empty(shape, dtype=dtype)
    absmax = _absmax(absmax, *nested) if nested else absmax
    values = torch.tensor(table, dtype=torch.float32, device=codes.device)
    pairs = torch.stack((codes.flatten() >> 4, codes.flatten() & 15), dim=1)
    scales = absmax.flatten().repeat_interleave(block_size(weights, absmax.numel()))[:weights]
    return (values[pairs.flatten()[:weights].int()] * scales).view(shape).to(dtype)


def _in_blocks(flat, size):
    """[blocks, size], padded with zeros."""
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).view(-1, size)


def quantize(table, weight, block_size=64, nested=True):
    """The tensors of a weight [N, K]: codes and absmax; with nested also nested_absmax, nested_map and offset."""
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"quantize: block_size={block_size!r}; choose one of {', '.join(map(str, BLOCK_SIZES))}")
    flat = weight.detach().float().flatten()
    blocks = _in_blocks(flat, block_size)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1).flatten()[: flat.numel()]
    rest = flat.numel() % block_size  # as in bitsandbytes, the last, short block is divided by its absmax
    if rest:
        absmax[-1].clamp_(min=1e-38)
        scaled[-rest:] = (flat[-rest:] / absmax[-1]).clamp(-1, 1)
    scaled = torch.nn.functional.pad(scaled, (0, scaled.numel() % 2))
    values, order = torch.tensor(table, dtype=torch.float32, device=weight.device).sort(stable=True)
    codes = order[torch.bucketize(scaled, (values[1:] + values[:-1]) / 2)].to(torch.uint8)
    packed = (codes[::2] << 4 | codes[1::2]).unsqueeze(1)
    return (packed, *_nested(absmax)) if nested else (packed, absmax)


@functools.cache
def _dynamic_map(device):
    """256 values of both signs, spaced more widely the larger they are: a byte's exponent is its number of leading
    zeros (Dettmers, arXiv:1511.04561)."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1, device="cpu")
        means = (edges[:-1] + edges[1:]) / 2
        for sign in (1, -1):
            values += (sign * 10 ** (exponent - 6) * means).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


def _nested(absmax):
    """absmax uint8, nested_absmax, nested_map and offset."""
    offset = absmax.mean()
    blocks = _in_blocks(absmax - offset, NESTED_BLOCK)
    scales = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / scales)[:, None]).clamp(-1, 1)
    # As bitsandbytes on a CPU: round to one of 65536 steps first.
    scaled = ((scaled + 1) * 0.5 * 65535 + 0.5).nan_to_num(0.0).int() / 65535 * 2 - 1
    values = _dynamic_map(absmax.device)
    codes = torch.bucketize(scaled, (values[1:] + values[:-1]) / 2)
    codes = codes.masked_fill(scales[:, None] == 0, 0).to(torch.uint8)
    return codes.flatten()[: absmax.numel()], scales, values.clone(), offset
