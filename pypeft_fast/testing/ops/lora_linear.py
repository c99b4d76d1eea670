import torch
import torch.nn.functional as F

from ...ops.lora_linear import lora_linear
from ..entry import Entry, Variant
from ..spoil import without, without_output, zeros


def eager(x, W, b, s, B, scaling, scale, need_z):
    up = F.linear(s, B.to(s.dtype)) * scaling
    if scale is None:
        return (F.linear(x, W, b) + up).to(x.dtype), x.new_empty(0, W.shape[0])
    z = (F.linear(x, W) + up).to(x.dtype)
    y = (scale * z).to(x.dtype)
    return y if b is None else y + b, z if need_z else z[:0]


def _arguments(o):
    s = o.s * (o.K / o.r) ** 0.5
    return o.x, o.weight, o.bias, s, o.B, o.scaling, o.scale, o.option("need_z", o.scale is not None)


def _z_without(index):
    """The kernel with z computed for one argument set to zero, so that z lacks a term."""
    return lambda f, *a: (f(*a)[0], f(*a[:index], torch.zeros_like(a[index]), *a[index + 1 :])[1])


SPOILED = {
    "zeros": zeros,
    "no low rank": without(3),
    "no bias": without(2),
    "no base": without(1),
    "no scaling": lambda f, *a: f(*a[:5], 1.0, *a[6:]),
}
SPOILED_SCALE = SPOILED | {
    "no scale": lambda f, *a: f(*a[:6], torch.ones_like(a[6]), a[7]),
    "bias scaled too": lambda f, *a: f(*a[:2], a[2] * a[6], *a[3:]),
    "zero z": without_output(1),
    "z is y": lambda f, *a: (f(*a)[0],) * 2,
    "z scaled": lambda f, *a: (f(*a)[0], f(*a)[1] * a[6]),
    "z with the bias": lambda f, *a: (f(*a)[0], f(*a)[1] + a[2]),
    "z without the low rank": _z_without(3),
    "z without the base": _z_without(1),
}
ENTRY = Entry(
    op=lora_linear,
    arguments=_arguments,
    eager=eager,
    variants={"": Variant({}, SPOILED), "scale": Variant({"scale": True}, SPOILED_SCALE)},  # scale: for DoRA
)
