"""Frozen: a weight in its stored format, and its conversion to the arguments of an op or a Function."""

from collections.abc import Sequence

import torch

from .accepted import computes_in
from .formats import FORMATS


class Frozen:
    """A frozen weight [N, K]: a format's name, its tensors in the format's order, and the dtype that it computes in.

    Args:
        format: "dense", whose tensors are (weight [N, K],), of any strides; "nf4", "fp4", "int8" or "fp8", as
            `quantize` makes them.
        tensors: shared, not copied.
        shape: (N, K); None: the shape of the first tensor, for a format that keeps the shape.
        dtype: the dtype of products with the weight; None: the dtype of the first tensor.

    Raises:
        ValueError: an unknown format, or a number of tensors or a shape that does not fit; the message names it.
        TypeError: a dtype is not accepted, or one of tensors is no tensor.
    """

    __slots__ = ("dtype", "format", "shape", "tensors")

    def __init__(
        self,
        format: str,
        tensors: Sequence[torch.Tensor],
        shape: tuple[int, int] | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not isinstance(format, str) or format not in FORMATS:
            raise ValueError(f"Frozen: format={format!r} is not known; choose one of {', '.join(FORMATS)}")
        names = FORMATS[format].tensors
        if len(tensors) not in names:
            accepted = " or ".join(f"{n}: {', '.join(of)}" for n, of in names.items())
            raise ValueError(f"Frozen: {len(tensors)} tensors; format {format!r} has {accepted}")
        for name, tensor in zip(names[len(tensors)], tensors, strict=True):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"Frozen: {name} is a {type(tensor).__name__}; give a tensor")
        self.format, self.tensors = format, tuple(tensors)
        self.shape = tuple(self.tensors[0].shape) if shape is None else tuple(shape)
        self.dtype = self.tensors[0].dtype if dtype is None else dtype
        if len(self.shape) != 2:
            raise ValueError(f"Frozen: shape={self.shape} must be (N, K)")
        FORMATS[format].check(self.tensors, self.shape, self.dtype)

    @classmethod
    def beside(
        cls, format: str, tensors: Sequence[torch.Tensor], sides: dict[str, int], dtype: torch.dtype
    ) -> "Frozen":
        """The weight of a call whose other operands give "N", "K" or both; the tensors give a missing size."""
        N, K = sides.get("N"), sides.get("K")
        if N is None or K is None:
            packs = FORMATS[format].packs
            elements = packs * tensors[0].numel()
            if packs == 1 and tensors[0].dim() == 2:
                N, K = tensors[0].shape
            elif N is not None and N < 2:
                raise ValueError(f"Frozen: K is unknown for {N} rows in format {format!r}; dequantise it")
            elif N is None and packs > 1 and K < 2:  # the number of codes is rounded up
                raise ValueError(f"Frozen: N is unknown for {K} columns in format {format!r}; dequantise it")
            else:
                N, K = elements // max(1, K) if N is None else N, elements // N if K is None else K
        return cls(format, tensors, (N, K), dtype)

    # The part of a tensor's interface that the ops' checks use.
    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def is_cpu(self) -> bool:
        return self.tensors[0].is_cpu

    def dim(self) -> int:
        return 2

    def numel(self) -> int:
        return self.shape[0] * self.shape[1]

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The dense weight [N, K] in `dtype` (default: self.dtype): the reference for every kernel that decodes it."""
        return FORMATS[self.format].dequantize(self.tensors, self.shape, self.dtype if dtype is None else dtype)

    def to(self, dtype: torch.dtype) -> "Frozen":
        """The same tensors with products in another dtype; a dense weight is cast."""
        if self.format == "dense":
            return Frozen("dense", (self.tensors[0].to(dtype),))
        computes_in(dtype)
        other = Frozen.__new__(Frozen)  # of tensors that have been checked
        other.format, other.tensors, other.shape, other.dtype = self.format, self.tensors, self.shape, dtype
        return other

    def detach(self) -> "Frozen":
        """Returns self: the tensors have no autograd graph."""
        return self

    def names(self) -> tuple[str, ...]:
        """The names of the tensors, in order."""
        return FORMATS[self.format].tensors[len(self.tensors)]

    def __repr__(self) -> str:
        return f"Frozen({self.format!r}, shape={self.shape}, dtype={self.dtype}, device={self.device})"


def is_stored(weight: torch.Tensor | Frozen | None) -> bool:
    """Whether the weight is a Frozen, tested in a way for which torch.compile needs no guard on the class."""
    return weight is not None and not isinstance(weight, torch.Tensor)


def operand(weight: torch.Tensor | Frozen) -> torch.Tensor | Frozen:
    """The tensor of a dense Frozen; any other weight as it is."""
    return weight.tensors[0] if is_stored(weight) and weight.format == "dense" else weight


def dense(weight: torch.Tensor | Frozen) -> torch.Tensor:
    """The dense weight [N, K]; a new tensor if the weight is quantised."""
    return weight.dequantize() if is_stored(weight) else weight


def stored(weight: torch.Tensor | Frozen) -> tuple[torch.Tensor, tuple]:
    """The arguments of a Function: (first tensor, (format, *other tensors)), or for a dense weight (weight, ())."""
    if not is_stored(weight):
        return weight, ()
    return weight.tensors[0], () if weight.format == "dense" else (weight.format, *weight.tensors[1:])


def crossed(*its) -> tuple:
    """The trailing arguments of an op, from the second part of `stored`: (format, [other tensors]) or ()."""
    return (its[0], list(its[1:])) if its else ()


def layout(weight: torch.Tensor | Frozen):
    """A tuning key: the format, or whether the rows of a dense weight are contiguous."""
    return weight.format if is_stored(weight) else weight.stride(1) == 1
