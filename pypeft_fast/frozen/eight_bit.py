"""int8 with one scale per row, as bitsandbytes stores it, and fp8 (e4m3fn) with scales as transformers stores them.

int8: weight int8 [N, K] and scale float32 [N], the largest absolute value of each row: W = weight * scale / 127.
Products are with W: activations are not quantised, as they are in LLM.int8 (Dettmers et al., arXiv:2208.07339).
fp8: weight float8_e4m3fn [N, K] and scale float32: one number, [N] or [N, 1] (one per row), or [ceil(N/128),
ceil(K/128)] (one per block of 128 x 128): W = weight * scale.
"""

import torch

from .accepted import computes_in, has

BLOCK = 128
LARGEST = 448.0  # of e4m3fn
FP8 = torch.float8_e4m3fn


def _check_weight(weight, stored, shape, dtype):
    computes_in(dtype)
    if tuple(weight.shape) != shape:
        raise ValueError(f"Frozen: weight has shape {tuple(weight.shape)}, expected {shape}")
    has("weight", weight, stored, weight.numel(), "")


def check_int8(tensors, shape, dtype):
    weight, scale = tensors
    _check_weight(weight, torch.int8, shape, dtype)
    has("scale", scale, torch.float32, shape[0], "one a row")


def check_fp8(tensors, shape, dtype):
    weight, scale = tensors
    _check_weight(weight, FP8, shape, dtype)
    N, K = shape
    blocks = -(-N // BLOCK), -(-K // BLOCK)
    if scale.numel() != 1 and tuple(scale.shape) not in ((N,), (N, 1), blocks):
        raise ValueError(
            f"Frozen: scale has shape {tuple(scale.shape)}; for weight {shape} it is one number, [{N}] or {blocks}"
        )
    has("scale", scale, torch.float32, scale.numel(), "")


def dequantize_int8(tensors, shape, dtype):
    weight, scale = tensors
    return (weight * (scale.flatten()[:, None] * (1.0 / 127.0))).to(dtype)


def spread(scale, shape) -> tuple[int, int, int]:
    """(rows, columns) of the block that one element of scale covers, and the number of blocks across a row."""
    (N, K), blocks = shape, (-(-shape[0] // BLOCK), -(-shape[1] // BLOCK))
    if scale.numel() == 1:
        return max(1, N), max(1, K), 1
    if tuple(scale.shape) == blocks:
        return BLOCK, BLOCK, blocks[1]
    return 1, max(1, K), 1


def dequantize_fp8(tensors, shape, dtype):
    weight, scale = tensors
    (N, K), (rows, columns, across) = shape, spread(scale, shape)
    scale = scale.reshape(-1, across).repeat_interleave(rows, 0)[:N].repeat_interleave(columns, 1)[:, :K]
    return (weight.float() * scale).to(dtype)


def _largest(rows):
    """The largest absolute value of each row."""
    return rows.abs().amax(dim=1) if rows.shape[1] else rows.new_zeros(rows.shape[0])


def quantize_int8(weight):
    rows = weight.detach().float().contiguous()  # codes have no gaps, whatever the strides of the weight
    scale = _largest(rows)
    return (rows * (127.0 / scale)[:, None]).nan_to_num(0.0).round().to(torch.int8), scale


def quantize_fp8(weight):
    """weight and scale, with one scale per row."""
    rows = weight.detach().float().contiguous()  # codes have no gaps, whatever the strides of the weight
    scale = _largest(rows)[:, None].clamp(min=1e-12) / LARGEST
    return (rows / scale).to(FP8), scale
