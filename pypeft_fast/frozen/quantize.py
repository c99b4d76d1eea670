"""Quantises a dense weight."""

import torch

from .formats import FORMATS
from .operand import Frozen


def quantize(weight: torch.Tensor, format: str = "nf4", *, block_size: int = 64, nested: bool = True) -> Frozen:
    """The weight [N, K] quantised: nf4, fp4 and int8 are bit for bit the bytes of bitsandbytes' CPU code.

    Args:
        weight: [N, K], float32, bfloat16 or float16; products with the result are in its dtype.
        format: "nf4" or "fp4" (QLoRA, Dettmers et al., arXiv:2305.14314): 4 bits a weight and a scale a block; "int8":
            a scale a row; "fp8": float8 e4m3fn and a scale a row.
        block_size: of nf4 and fp4, a power of two from 16 to 65536: the weights that share a scale.
        nested: of nf4 and fp4, whether the scales are stored in 8 bits ("double quantisation").

    Raises:
        ValueError: an unknown format or block size, or a weight that is not 2-D.
        TypeError: the weight's dtype is not accepted.
    """
    if not isinstance(format, str) or format not in FORMATS or FORMATS[format].quantize is None:
        known = ", ".join(name for name, its in FORMATS.items() if its.quantize is not None)
        raise ValueError(f"quantize: format={format!r}; choose one of {known}")
    if not isinstance(weight, torch.Tensor):
        raise TypeError(f"quantize: weight is a {type(weight).__name__}; give a tensor [N, K]")
    if weight.dim() != 2:
        raise ValueError(f"quantize: weight has shape {tuple(weight.shape)}, expected [N, K]")
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"quantize: weight is {weight.dtype}; accepted are float32, bfloat16 and float16")
    options = {"block_size": block_size, "nested": nested} if format in ("nf4", "fp4") else {}
    return Frozen(format, FORMATS[format].quantize(weight, **options), tuple(weight.shape), weight.dtype)
