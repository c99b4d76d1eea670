"""Merging an update into a quantised weight: decode, add, quantise again, and measure what is left of it."""

import torch

from . import four_bit
from .operand import Frozen
from .quantize import quantize

LEAST_SHARE = 0.9


def requantized(frozen: Frozen, merged: torch.Tensor) -> tuple[Frozen, float]:
    """`merged` [N, K] in float32, quantised as `frozen` is, and the share of the update that survives the rounding.

    With the decoded weight W the update is D = merged - W, the update after rounding R = Q(merged) - W, and the share
    <R, D> / <D, D>: 0 if every weight rounds back to its old code, 1 if nothing is lost.
    TypeError for a weight with scales that `quantize` does not make (fp8 with block or per-tensor scales).
    """
    options = {}
    if frozen.format in four_bit.TABLES:
        size = four_bit.block_size(frozen.numel(), frozen.tensors[1].numel())
        options = {"block_size": size, "nested": len(frozen.tensors) > 2}
    elif frozen.format == "fp8" and frozen.tensors[1].numel() != frozen.shape[0]:
        raise TypeError("merge: cannot merge into an fp8 weight with block or per-tensor scales; dequantise it")
    new = quantize(merged, frozen.format, **options).to(frozen.dtype)
    weight = frozen.dequantize(torch.float32)
    update, left = merged - weight, new.dequantize(torch.float32) - weight
    total = update.square().sum().item()
    return new, 1.0 if total == 0 else (left * update).sum().item() / total


def check_share(share: float, force: bool) -> None:
    """RuntimeError if less than LEAST_SHARE of an update survives the rounding, unless force."""
    if share < LEAST_SHARE and not force:
        raise RuntimeError(
            f"merge: {share:.0%} of the update would survive the rounding to the weight's format, less than "
            f"{LEAST_SHARE:.0%}; keep the adapter beside the weight, merge into a dense copy of the model, or force it"
        )
