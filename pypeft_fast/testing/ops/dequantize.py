import torch

from ...frozen.operand import Frozen
from ...ops.dequantize import dequantize
from ..entry import Entry, Variant
from ..operands import quantized
from ..spoil import zeros


def eager(weight, scales, format, N, K, dtype):
    return Frozen(format, (weight, *scales), (N, K), torch.float32).dequantize().to(dtype)


def _arguments(o):
    name = o.option("format", "nf4") if o.case.format == "dense" else o.case.format
    frozen = o.weight if isinstance(o.weight, Frozen) else quantized(o.weight, name)
    return frozen.tensors[0], list(frozen.tensors[1:]), frozen.format, *frozen.shape, frozen.dtype


def _rolled(tensor):
    """The tensor with every element moved to the next place."""
    return tensor.flatten().roll(1).view(tensor.shape)


def _with_scale(index, change):
    return lambda f, w, scales, *a: f(w, [change(s) if i == index else s for i, s in enumerate(scales)], *a)


SPOILED = {
    "zeros": zeros,
    "nibbles swapped": lambda f, w, *a: f(w << 4 | w >> 4, *a),
    "the table of the other format": lambda f, w, s, format, *a: f(w, s, "fp4", *a),
    "absmax of the neighbour": _with_scale(0, _rolled),
    "no offset": _with_scale(3, torch.zeros_like),
    "nested scales doubled": _with_scale(1, lambda s: 2 * s),
}
SPOILED_INT8 = {
    "zeros": zeros,
    "scale of the neighbour": _with_scale(0, _rolled),
    "unsigned": lambda f, w, *a: f(w.abs(), *a),
    "not over 127": _with_scale(0, lambda s: s * 127 / 128),
}
SPOILED_FP8 = {
    "zeros": zeros,
    "scale of the neighbour": _with_scale(0, _rolled),
    "no sign": lambda f, w, *a: f((w.view(torch.uint8) & 0x7F).view(w.dtype), *a),
}
ENTRY = Entry(
    op=dequantize,
    arguments=_arguments,
    eager=eager,
    variants={
        "": Variant({}, SPOILED),
        "int8": Variant({"format": "int8"}, SPOILED_INT8),
        "fp8": Variant({"format": "fp8"}, SPOILED_FP8),
    },
)
