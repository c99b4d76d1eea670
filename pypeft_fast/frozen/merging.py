"""Folding an update into a quantised weight: decoded, added, quantised again, and how much of the update is left."""

import torch

from . import four_bit
from .operand import Frozen
from .quantize import quantize

LEAST_SHARE = 0.9


def requantized(frozen: Frozen, merged: torch.Tensor) -> tuple[Frozen, float]:
    """`merged` [N, K] in float32, quantised as `frozen` is, and the share of the update that survives the rounding.

    The update is D = merged - W of the decoded W, and what becomes of it R = Q(merged) - W: the share is
    <R, D> / <D, D>. It is 0 where every weight rounds back to the code that it had, and 1 where nothing is lost.
    TypeError for a format whose scales are not those that quantising gives (fp8 in blocks or per tensor).
    """
    options = {}
    if frozen.format in four_bit.TABLES:
        size = four_bit.block_size(frozen.numel(), frozen.tensors[1].numel())
        options = {"block_size": size, "nested": len(frozen.tensors) > 2}
    elif frozen.format == "fp8" and frozen.tensors[1].numel() != frozen.shape[0]:
        raise TypeError("merge: an fp8 weight with a scale a block or one for all cannot be merged into; dequantise it")
    new = quantize(merged, frozen.format, **options).to(frozen.dtype)
    weight = frozen.dequantize(torch.float32)
    update, left = merged - weight, new.dequantize(torch.float32) - weight
    total = update.square().sum().item()
    return new, 1.0 if total == 0 else (left * update).sum().item() / total


def check_share(share: float, force: bool) -> None:
    """RuntimeError if so little of an update survives that the merged layer is not the adapter's, unless forced."""
    if share < LEAST_SHARE and not force:
        raise RuntimeError(
            f"merge: {share:.0%} of the update would survive the rounding to the weight's format, less than "
            f"{LEAST_SHARE:.0%}; keep the adapter beside the weight, merge into a dense copy of the model, or force it"
        )
