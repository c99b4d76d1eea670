"""Dequantises a weight in one launch. Codes and scales are read once; nested scales are computed in the same kernel."""

import torch
import triton
import triton.language as tl

from . import _tiles


@triton.jit
def _value_of_fp8(byte):
    """Converts float8 e4m3fn through a float16 whose exponent is 8 too small; GPUs before sm_89 have no float8 type."""
    bits = ((byte & 0x80).to(tl.uint16) << 8) | ((byte & 0x7F).to(tl.uint16) << 7)
    value = bits.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((byte & 0x7F) == 0x7F, float("nan"), value)


@triton.jit
def _dequantize(
    codes, scales, table, nested, nested_map, offset, out, elements, K, per_scale, per_nested,
    scale_rows, scale_columns, scales_across,
    KIND: tl.constexpr, NESTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < elements
    if KIND == "four_bit":
        byte = tl.load(codes + at // 2, there, 0)
        value = tl.load(table + tl.where(at % 2 == 0, byte >> 4, byte & 15).to(tl.int32), there, 0.0)
        block = at // per_scale
        if NESTED:
            scale = tl.load(scales + block // per_nested, there, 0.0)
            scale = tl.load(nested_map + tl.load(nested + block, there, 0).to(tl.int32), there, 0.0) * scale
            scale += tl.load(offset)
        else:
            scale = tl.load(scales + block, there, 0.0)
    else:
        byte = tl.load(codes + at, there, 0)
        if KIND == "int8":
            value = byte.to(tl.int8, bitcast=True).to(tl.float32) * (1.0 / 127.0)
        else:
            value = _value_of_fp8(byte)
        where = at // K // scale_rows * scales_across + at % K // scale_columns
        scale = tl.load(scales + where, there, 0.0)
    tl.store(out + at, (value * scale).to(out.dtype.element_ty), there)


def dequantize(codes, scales, shape, dtype, kind, *, table=None, nested=None, per_scale=1, spread=(1, 1, 1)):
    """codes of any shape, scales float32 -> [N, K] in dtype.

    kind is "four_bit", "int8" or "fp8". four_bit needs `table`, its sixteen values, and `per_scale`, the number of
    weights of a scale. int8 and fp8 need `spread`: the number of rows and of columns of a scale, and the number of
    scales in a row. nested, for four_bit only: (a byte for each block, the 256 values of a byte, offset, the number of
    blocks of one element of `scales`).
    """
    (N, K), out = shape, codes.new_empty(shape, dtype=dtype)
    if out.numel() == 0:
        return out
    bytes_, nested_map, offset, per_nested = nested or (scales, scales, scales, 1)  # not read if nested is None
    values = scales if table is None else torch.tensor(table, dtype=torch.float32, device=codes.device)

    def launch(config):
        block = config.BM * config.BO
        _dequantize[(_tiles.cdiv(N * K, block),)](
            codes.view(torch.uint8), scales, values, bytes_, nested_map, offset, out, N * K, K, per_scale, per_nested,
            *spread, KIND=kind, NESTED=nested is not None, BLOCK=block,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("dequantize", launch, (out,), (N, K))
    return out
