"""Merging adapters into a weight, in float32."""

import torch

from ..autograd.dora_norm import row_scale


def lora_delta(lora_A, lora_B, scaling):
    """scaling * B A, [N, K], in float32 (float64 for float64 adapters)."""
    wide = torch.promote_types(lora_A.dtype, torch.float32)
    with torch.no_grad():
        return (lora_B.to(wide) @ lora_A.to(wide)).mul_(scaling)


def merged_weight(weight, deltas):
    """A new tensor: weight + the sum of deltas [N, K], summed in float32 and rounded once to weight's dtype."""
    with torch.no_grad():
        total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
        for delta in deltas:
            total += delta
        return total.to(weight.dtype)


def scaled_in_float32(parameter, factor):
    """A new tensor: parameter * factor, multiplied in float32 and rounded once to parameter's dtype."""
    with torch.no_grad():
        wide = torch.promote_types(parameter.dtype, torch.float32)
        return (parameter.to(wide) * factor.to(wide)).to(parameter.dtype)


def dora_weight(weight, lora_A, lora_B, magnitude, scaling):
    """A new tensor: the rows of weight + scaling * B A rescaled to the norms in magnitude, in float32, rounded once."""
    with torch.no_grad():
        total = weight.to(torch.promote_types(weight.dtype, torch.float32)) + lora_delta(lora_A, lora_B, scaling)
        factor = row_scale(magnitude, torch.linalg.vector_norm(total, dim=1))
        return (total * factor[:, None]).to(weight.dtype)
