"""The length of every row of W + scaling * B A, without forming that matrix, and when a stored one may be used again.

For row n: |W_n|^2 + B_n . (2 scaling (W A^T)_n + scaling^2 B_n (A A^T)). The one pass over W is lora_shrink with W in
the place of x, so W is neither cast nor copied. Source of DoRA: Liu et al., arXiv:2402.09353.
"""

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from ..ops.lora_shrink import lora_shrink


def _wide(tensor):
    return torch.promote_types(tensor.dtype, torch.float32)


@torch.no_grad()
def row_squares(weight):
    """|W_n|^2 for every row of weight [N, K], [N] in float32 (float64 for float64)."""
    return torch.linalg.vector_norm(weight, dim=1, dtype=_wide(weight)).square()


@torch.no_grad()
def dora_norm(weight, lora_A, lora_B, scaling, squares=None):
    """|W_n + scaling * (B A)_n| for every row, [N] in float32 (float64 for float64), outside the graph of autograd.

    weight [N, K], lora_A [r, K], lora_B [N, r] of any floating dtypes; squares is what row_squares(weight) gave. A row
    whose update cancels the weight to less than about a thousandth of its length is less exact than a formed sum.
    """
    squares = row_squares(weight) if squares is None else squares
    with torch.autocast(weight.device.type, enabled=False):
        wide = squares.dtype
        A, B = lora_A.to(wide), lora_B.to(wide)
        through_weight, _ = lora_shrink(weight, A, 0.0, None)
        twice_cross = (2.0 * scaling) * through_weight + (scaling * scaling) * (B @ (A @ A.t()))
        return (squares + (B * twice_cross).sum(1)).clamp_min(0).sqrt()


def row_scale(magnitude, norm):
    """g [N] = magnitude / norm, and 1 for a row of length 0, which has no direction: it stays zero plus its update."""
    return (magnitude.to(norm.dtype) / norm).masked_fill_(norm == 0, 1.0)


class NormCache:
    """The norm of one layer and its |W_n|^2, kept while nothing that they depend on has changed.

    A change is seen by the tensors' version counters and storages. A write through `.data` moves neither, so a norm
    made for training lives until the next backward pass (checkpointing recomputes with it; an optimizer steps after
    it), and `clear` drops everything: modules call it in train() and eval() and when they load. A cache is not copied
    or pickled with its layer, and a graph traced by torch.compile computes the norm instead.
    """

    def __init__(self):
        self.clear()

    def clear(self):
        self._squares = self._norm = None  # (what it was made from, the tensor)

    def after_backward(self):
        self._norm = None

    def norm(self, weight, lora_A, lora_B, scaling):
        frozen, identity = _identity(weight), _identity(lora_A, lora_B)
        if frozen is None or identity is None or weight.requires_grad:
            return dora_norm(weight, lora_A, lora_B, scaling)
        squares, norm = self._squares, self._norm  # once: another thread may call clear meanwhile
        if squares is None or squares[0] != frozen:
            squares, norm = (frozen, row_squares(weight)), None
            self._squares, self._norm = squares, norm
        training = torch.is_grad_enabled() and (lora_A.requires_grad or lora_B.requires_grad)
        key = (identity, float(scaling), training)
        if norm is None or norm[0] != key:
            norm = self._norm = key, dora_norm(weight, lora_A, lora_B, scaling, squares[1])
        return norm[1]

    def __reduce__(self):
        return NormCache, ()


def _identity(*tensors):
    """Equal for the same tensors, unchanged; None if a tensor does not keep count of its changes."""
    if any(t.is_inference() for t in tensors):
        return None
    # The weak reference keeps the storage's own address from being given to another, even once its memory is freed.
    return [
        (StorageWeakRef(t.untyped_storage()), t.storage_offset(), t.shape, t.stride(), t.dtype, t._version)
        for t in tensors
    ]
