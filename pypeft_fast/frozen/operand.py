"""Frozen: a weight as it is stored."""

from collections.abc import Sequence

import torch

from .formats import FORMATS


class Frozen:
    """A frozen weight [N, K]: a format's name, its tensors in the format's order, and the dtype that it computes in.

    Args:
        format: "dense": tensors is (weight [N, K],), of any strides.
        tensors: shared, not copied.
        shape: (N, K), or None for that of the first tensor, if the format keeps it.
        dtype: of the products with it, or None for the first tensor's, if the format keeps it.

    Raises:
        ValueError: an unknown format, or a number of tensors or a shape that does not fit; the message names it.
        TypeError: a dtype is not accepted.
    """

    __slots__ = ("dtype", "format", "shape", "tensors")

    def __init__(
        self,
        format: str,
        tensors: Sequence[torch.Tensor],
        shape: tuple[int, int] | None = None,
        dtype: torch.dtype | None = None,
    ):
        if format not in FORMATS:
            raise ValueError(f"Frozen: format={format!r} is not known; choose one of {', '.join(FORMATS)}")
        names = FORMATS[format].tensors
        if len(tensors) != len(names):
            raise ValueError(f"Frozen: {len(tensors)} tensors; format {format!r} has {len(names)}: {', '.join(names)}")
        self.format, self.tensors = format, tuple(tensors)
        self.shape = tuple(self.tensors[0].shape) if shape is None else tuple(shape)
        self.dtype = self.tensors[0].dtype if dtype is None else dtype
        if len(self.shape) != 2:
            raise ValueError(f"Frozen: shape={self.shape} must be (N, K)")
        FORMATS[format].check(self.tensors, self.shape, self.dtype)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    def dequantize(self) -> torch.Tensor:
        """The weight [N, K] in `dtype`: the reference of every kernel that reads the stored one."""
        return FORMATS[self.format].dequantize(self.tensors, self.shape, self.dtype)

    def __repr__(self) -> str:
        return f"Frozen({self.format!r}, shape={self.shape}, dtype={self.dtype}, device={self.device})"


def dense(weight: torch.Tensor | Frozen) -> torch.Tensor:
    """The tensor that the ops read: every format that there is keeps one."""
    return weight.tensors[0] if type(weight) is Frozen else weight
