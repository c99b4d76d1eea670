"""Checks that all formats share."""

import torch

ACCEPTED = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def of_accepted_dtype(name, stored, dtype):
    """TypeError unless a dense tensor of dtype `stored` can be multiplied in `dtype`."""
    if stored != dtype or dtype not in ACCEPTED:
        accepted = ", ".join(map(str, ACCEPTED))
        raise TypeError(f"Frozen: {name} is {stored}, dtype={dtype}; both must be one of {accepted}")


def computes_in(dtype):
    """TypeError unless a quantised weight can be decoded to this dtype."""
    if dtype not in ACCEPTED:
        raise TypeError(f"Frozen: dtype={dtype}; a quantised weight computes in {', '.join(map(str, ACCEPTED))}")


def has(name, tensor, dtype, numel, why):
    """Checks dtype, number of elements and contiguity of a tensor; any shape is accepted."""
    if tensor.dtype != dtype:
        raise TypeError(f"Frozen: {name} is {tensor.dtype}, expected {dtype}")
    if tensor.numel() != numel:
        raise ValueError(f"Frozen: {name} has {tensor.numel()} elements, expected {numel}: {why}")
    if not tensor.is_contiguous():
        raise ValueError(f"Frozen: {name} has gaps, strides {tensor.stride()}; pass {name}.contiguous()")
