"""tl.dot for every mix of dtypes: the one place that knows the interpreter's gap and torch's fp32 settings."""

import os

import torch
import triton
import triton.language as tl

from . import _tiles

# As Triton itself reads it when a kernel is defined.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. Operands of two dtypes meet in float32, where each is exact.

    Triton 3.9's interpreter multiplies the bits of bfloat16 as if they were integers: there, all meet in float32.
    """
    if INTERPRETED or a.dtype != b.dtype:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


def precision(device, *dtypes, rounded_to=torch.float32):
    """How the float32 products of these operands are formed: what torch's matmul settings ask for.

    Where a half-precision operand meets a float32 adapter, the full precision is three TF32 products on tensor cores
    (the half-precision operand is exact in TF32), or one if the result is rounded to half precision at once, below
    TF32's own; pure float32 at full precision stays off tensor cores, as in PyTorch.
    """
    arch = _tiles.architecture(device)
    if arch == "interpreter":
        return "ieee"
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32" if isinstance(arch, int) or arch == "gfx942" else "ieee"  # no other of AMD's has it
    if len(set(dtypes)) == 1 or not isinstance(arch, int):
        return "ieee"
    return "tf32x3" if rounded_to == torch.float32 else "tf32"
