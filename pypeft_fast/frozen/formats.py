"""The formats of a frozen weight [N, K]: one entry per format, with its tensors, its check and its reference."""

from collections.abc import Callable
from dataclasses import dataclass

from . import eight_bit, four_bit
from .accepted import of_accepted_dtype


@dataclass(frozen=True)
class Format:
    """A way to store a weight.

    tensors: {how many: their names in order}. check(tensors, shape, dtype): ValueError or TypeError unless the tensors
    fit a weight of this shape that computes in this dtype. dequantize(tensors, shape, dtype): the dense weight, the
    reference. packs: how many weights one element of the first tensor holds; the last element may hold fewer.
    quantize(weight, **options): the tensors; None for a format that is only read. native: whether the kernels of
    csrc/ and the Triton kernel of `dequantize` decode the format; every other kernel gets the dequantised weight.
    """

    tensors: dict[int, tuple[str, ...]]
    check: Callable
    dequantize: Callable
    packs: int = 1
    quantize: Callable | None = None
    native: bool = False


def _check_dense(tensors, shape, dtype):
    (weight,) = tensors
    if tuple(weight.shape) != shape:
        raise ValueError(f"Frozen: weight has shape {tuple(weight.shape)}, expected {shape}")
    of_accepted_dtype("weight", weight.dtype, dtype)


def _four_bit(name):
    table = four_bit.TABLES[name]
    return Format(
        {2: ("codes", "absmax"), 5: ("codes", "absmax", "nested_absmax", "nested_map", "offset")},
        four_bit.check,
        lambda tensors, shape, dtype: four_bit.dequantize(table, tensors, shape, dtype),
        packs=2,
        quantize=lambda weight, **options: four_bit.quantize(table, weight, **options),
        native=True,
    )


FORMATS = {
    "dense": Format({1: ("weight",)}, _check_dense, lambda tensors, shape, dtype: tensors[0].to(dtype), native=True),
    "nf4": _four_bit("nf4"),
    "fp4": _four_bit("fp4"),
    "int8": Format({2: ("weight", "scale")}, eight_bit.check_int8, eight_bit.dequantize_int8,
                   quantize=eight_bit.quantize_int8, native=True),
    "fp8": Format({2: ("weight", "scale")}, eight_bit.check_fp8, eight_bit.dequantize_fp8,
                  quantize=eight_bit.quantize_fp8, native=True),
}  # fmt: skip
