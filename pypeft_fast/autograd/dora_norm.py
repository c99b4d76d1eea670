"""The length of every row of W + scaling * B A, and DoRA's factor of every row.

Every call computes the norms again: an optimizer, weight averaging or a sharded layer may write parameters without
a change of the version counter. Source of DoRA: Liu et al., arXiv:2402.09353.
"""

import torch

from ..ops.dora_norm import dora_norm as dora_norm_op
from ._autocast import without_autocast


def row_norm(weight):
    """|W_n| for every row of weight [N, K], [N] in float32 (float64 for float64), outside the graph of autograd."""
    with torch.no_grad():
        return torch.linalg.vector_norm(weight, dim=1, dtype=torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def dora_norm(weight, lora_A, lora_B, scaling):
    """|W_n + scaling * (B A)_n| for every row, [N] in float32 (float64 for float64), outside the graph of autograd.

    weight [N, K], lora_A [r, K], lora_B [N, r] of any floating dtypes.
    """
    if not weight.dtype == lora_A.dtype == lora_B.dtype:
        wide = torch.promote_types(weight.dtype, torch.float32)
        lora_A, lora_B = lora_A.to(wide), lora_B.to(wide)
    with without_autocast(weight.device):
        return dora_norm_op(weight, lora_A, lora_B, scaling)


def row_scale(magnitude, norm):
    """g [N] = magnitude / norm, and 1 for a row of length 0, which has no direction: it stays zero plus its update."""
    return (magnitude.to(norm.dtype) / norm).masked_fill(norm == 0, 1.0)
