"""tl.dot for every mix of dtypes: the one place that knows the interpreter's gap and torch's fp32 settings."""

import os

import torch
import triton
import triton.language as tl

from . import _tiles

# As Triton itself reads it when a kernel is defined.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def _halves(a, b, acc):
    """acc + a @ b of two operands in half precision.

    Triton 3.9's interpreter multiplies the bits of bfloat16 as if they were integers: there, they meet in float32.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    else:
        return tl.dot(a, b, acc)


@triton.jit
def _truncated(value):
    """The first 8 bits of a float32's mantissa, which bfloat16 holds. To round them could overflow."""
    return (value.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def cut(value, other, PRECISION: tl.constexpr):
    """What `dot` multiplies `other` by in place of a float32 value, where PRECISION is "parts": (high, middle, low) in
    bfloat16, whose sum is the value exactly, down to bfloat16's smallest number. Else the value three times.

    For a value that is multiplied more than once: `dot` does it itself.
    """
    if PRECISION == "parts" and value.dtype != other.dtype:
        high = _truncated(value)
        rest = value - high
        middle = _truncated(rest)
        return high.to(tl.bfloat16), middle.to(tl.bfloat16), (rest - middle).to(tl.bfloat16)
    else:
        return value, value, value


@triton.jit
def dot_parts(a, b_parts, b_dtype: tl.constexpr, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32, of b's parts and dtype. Operands of two dtypes meet in float32, where each is exact.

    Where an operand is infinite the small products may be no number; the large one says what the sum is.
    """
    high, middle, low = b_parts
    if PRECISION == "parts" and a.dtype != b_dtype:
        small = _halves(a, middle, _halves(a, low, tl.zeros_like(acc)))
        return _halves(a, high, acc + tl.where(small == small, small, 0.0))
    elif PRECISION == "parts":
        return _halves(a, high, acc)
    elif INTERPRETED or a.dtype != b_dtype:
        return tl.dot(a.to(tl.float32), high.to(tl.float32), acc, input_precision=PRECISION)
    else:
        return tl.dot(a, high, acc, input_precision=PRECISION)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32."""
    return dot_parts(a, cut(b, a, PRECISION), b.dtype, acc, PRECISION)


def precision(device, *dtypes, rounded_to=torch.float32):
    """How the float32 products of these operands are formed: what torch's matmul settings ask for.

    Where a half-precision operand meets a float32 adapter, the full precision is three TF32 products on tensor cores
    (the half-precision operand is exact in TF32), or one if the result is rounded to half precision at once, below
    TF32's own. From sm_90 on, a bfloat16 operand and the parts of the adapter make three products in bfloat16 instead;
    float16 has not the range. Pure float32 at full precision stays off tensor cores, as in PyTorch.
    """
    arch = _tiles.architecture(device)
    if rounded_to == torch.float32 and _tiles.in_parts(arch, dtypes):
        return "parts"
    if arch == "interpreter":
        return "ieee"
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32" if isinstance(arch, int) or arch == "gfx942" else "ieee"  # no other of AMD's has it
    if len(set(dtypes)) == 1 or not isinstance(arch, int):
        return "ieee"
    return "tf32x3" if rounded_to == torch.float32 else "tf32"
