import torch

from ...ops import philox
from ...ops.lora_dx import lora_dx
from ..entry import Entry, Variant
from ..spoil import without, zeros


def eager(dY, W, dS, A, mask, p):
    return dY @ W + philox.dropped((dS @ A.to(dS.dtype)).to(dY.dtype), mask, p)


def _without_scale(kernel, dY, W, dS, A, mask, p):
    """The kernel without the scale 1 / (1 - p) of dropout, which applies only to the low-rank term."""
    base = kernel(dY, W, torch.zeros_like(dS), A, mask, p)
    return base + (kernel(dY, W, dS, A, mask, p) - base) / philox.scale(p)


SPOILED = {
    "zeros": zeros,
    "no low rank": without(2),
    "no base": without(1),
    "no mask": lambda f, *a: f(*a[:5], 0.0),
    "no scale": _without_scale,
}
ENTRY = Entry(
    op=lora_dx,
    arguments=lambda o: (o.dY, o.weight, o.dS * (o.N / o.r) ** 0.5, o.A, o.mask, o.p),
    eager=eager,
    variants={"": Variant({}, SPOILED)},
)
