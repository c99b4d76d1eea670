"""How a frozen weight [N, K] may be stored: one entry a format, with its tensors, its check and its reference."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

ACCEPTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Format:
    """A way to store a weight.

    tensors: the names of its tensors in order. check(tensors, shape, dtype): ValueError or TypeError unless they fit a
    weight of this shape that computes in this dtype. dequantize(tensors, shape, dtype): that weight, the reference.
    """

    tensors: tuple[str, ...]
    check: Callable
    dequantize: Callable


def _check_dense(tensors, shape, dtype):
    (weight,) = tensors
    if tuple(weight.shape) != shape:
        raise ValueError(f"Frozen: weight has shape {tuple(weight.shape)}, expected {shape}")
    if weight.dtype != dtype or dtype not in ACCEPTED:
        accepted = ", ".join(map(str, ACCEPTED))
        raise TypeError(f"Frozen: weight is {weight.dtype}, dtype={dtype}; both must be one of {accepted}")


FORMATS = {"dense": Format(("weight",), _check_dense, lambda tensors, shape, dtype: tensors[0])}
