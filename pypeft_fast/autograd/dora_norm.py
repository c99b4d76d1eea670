"""The length of every row of W + scaling * B A, without forming that matrix.

For row n: |W_n|^2 + scaling * B_n . (2 (W A^T)_n + scaling * B_n (A A^T)). The product with a W in half precision is
lora_shrink with W in the place of x, so W is neither cast nor copied. Every call measures anew: an optimizer, an
average of weights or a sharded layer writes parameters in ways that move no version counter.
Source of DoRA: Liu et al., arXiv:2402.09353.
"""

import torch

from ..ops.lora_shrink import lora_shrink
from ._autocast import without_autocast


def row_norm(weight):
    """|W_n| for every row of weight [N, K], [N] in float32 (float64 for float64), outside the graph of autograd."""
    with torch.no_grad():
        return torch.linalg.vector_norm(weight, dim=1, dtype=torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def dora_norm(weight, lora_A, lora_B, scaling):
    """|W_n + scaling * (B A)_n| for every row, [N] in float32 (float64 for float64), outside the graph of autograd.

    weight [N, K], lora_A [r, K], lora_B [N, r] of any floating dtypes. A row whose update cancels the weight to less
    than about a thousandth of its length is less exact than a formed sum.
    """
    # Detached for torch.export, which leaves an empty region where no_grad finds nothing to switch off.
    weight, lora_A, lora_B = weight.detach(), lora_A.detach(), lora_B.detach()
    with without_autocast(weight.device):
        squares = row_norm(weight).square()
        A, B = lora_A.to(squares.dtype), lora_B.to(squares.dtype)
        through_weight = _through(weight, A)
        cross = torch.addmm(through_weight, B, A @ A.t(), beta=2.0, alpha=scaling)
        return torch.add(squares, (B * cross).sum(1), alpha=scaling).clamp_min(0).sqrt()


def _through(weight, A):
    """W A^T, [N, r] in A's dtype, which is weight's or wider."""
    return (A @ weight.t()).t() if weight.dtype == A.dtype else lora_shrink(weight, A, 0.0, None)[0]


def row_scale(magnitude, norm):
    """g [N] = magnitude / norm, and 1 for a row of length 0, which has no direction: it stays zero plus its update."""
    return (magnitude.to(norm.dtype) / norm).masked_fill(norm == 0, 1.0)
