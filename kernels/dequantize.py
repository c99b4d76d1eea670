"""A quantised weight as a dense one, in one launch: codes and scales are read once, nested scales made on the way."""

import torch
import triton
import triton.language as tl

from ..frozen import eight_bit, four_bit

BLOCK = 1024  # elements of a program


@triton.jit
def _value_of_fp8(byte):
    """float8 e4m3fn by way of a float16 whose exponent is 8 too small: GPUs before sm_89 have no such type."""
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


def dequantize(frozen):
    """A pf.Frozen of a quantised format -> [N, K] in its dtype."""
    codes, scales, *rest = frozen.tensors
    (N, K), elements = frozen.shape, frozen.numel()
    out = codes.new_empty(N, K, dtype=frozen.dtype)
    if elements == 0:
        return out
    table = nested = nested_map = offset = scales  # where a format has none
    per_scale = per_nested = scale_rows = scale_columns = scales_across = 1
    kind = {"nf4": "four_bit", "fp4": "four_bit"}.get(frozen.format, frozen.format)
    if kind == "four_bit":
        table = torch.tensor(four_bit.TABLES[frozen.format], dtype=torch.float32, device=codes.device)
        per_scale = four_bit.block_size(elements, scales.numel())
        if rest:
            nested, (scales, nested_map, offset), per_nested = scales, rest, four_bit.NESTED_BLOCK
    else:
        scale_rows, scale_columns, scales_across = eight_bit.spread(scales, frozen.shape)
    _dequantize[(triton.cdiv(elements, BLOCK),)](
        codes.view(torch.uint8), scales, table, nested, nested_map, offset, out, elements, K, per_scale, per_nested,
        scale_rows, scale_columns, scales_across, KIND=kind, NESTED=bool(rest), BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return out
