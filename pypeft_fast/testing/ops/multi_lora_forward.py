from dataclasses import replace

import torch

from ...ops.multi_lora_forward import CUDA_ROWS, multi_lora_forward
from ..entry import Entry, Limits, Variant
from ..spoil import without, without_output
from ._adapters import Adapters
from .lora_linear import eager as linear_eager
from .lora_shrink import eager as shrink_eager


def eager(x, W, b, A, B, index, scalings, ps, seeds):
    """Each adapter's LoRA layer applied to the adapter's rows; the dropout masks are drawn for the whole batch."""
    y = torch.nn.functional.linear(x, W, b)
    s = x.new_zeros(x.shape[0], max(a.shape[0] for a in A), dtype=A[0].dtype)
    mask = torch.zeros(x.shape[0] if any(ps) else 0, (x.shape[1] + 7) // 8, dtype=torch.uint8)
    for i, (a, up) in enumerate(zip(A, B, strict=True)):
        own = index == i
        seed = seeds[i : i + 1] if ps[i] > 0 else None
        every, bits = shrink_eager(x, a, ps[i], seed)
        s[own, : a.shape[0]] = every[own]
        if ps[i] > 0:
            mask[own] = bits[own]
        y[own] = linear_eager(x[own], W, b, every[own], up, scalings[i], None, False)[0]
    return y, s, mask


def _arguments(o):
    its = Adapters(o)
    return o.x, o.weight, o.bias, its.A, its.B, its.index, its.scalings, its.ps, its.seeds


def _no_dropout(f, *a):
    n = len(a[3])
    return f(*a[:7], [0.0] * n, None)[0], *f(*a)[1:]


def _neighbour(f, *a):
    return f(*a[:3], a[3], a[4], torch.where(a[5] == 0, 1, a[5]), *a[6:])


def _shifted_scalings(f, *a):
    return f(*a[:6], [*a[6][1:], a[6][0]], *a[7:])


def _shifted_rows(f, *a):
    return f(*a[:5], a[5].roll(1), *a[6:])


def _one_seed(f, *a):
    return f(*a[:8], a[8][:1].expand_as(a[8]).flip(0))


SPOILED = {
    "zero y": without_output(0),
    "zero s": without_output(1),
    "no base": without(1),
    "no bias": without(2),
    "no low rank": lambda f, *a: f(*a[:4], [torch.zeros_like(B) for B in a[4]], *a[5:]),
    "no dropout": _no_dropout,
    "one seed for all": _one_seed,
    "the neighbour's adapter": _neighbour,
    "the neighbour's scaling": _shifted_scalings,
    "rows off by one": _shifted_rows,
}
ENTRY = Entry(
    op=multi_lora_forward,
    arguments=_arguments,
    eager=eager,
    variants={
        "": Variant({}, SPOILED),
        "one adapter": Variant({"adapters": 1}, {"zero y": without_output(0)}),
        "8 adapters": Variant({"adapters": 8}, {"the neighbour's adapter": _neighbour}),
        "64 adapters": Variant({"adapters": 64}, {"the neighbour's scaling": _shifted_scalings}),
    },
    limits={
        "cuda": Limits(lambda case: replace(case, M=min(case.M, CUDA_ROWS), p=0.0), ("no dropout", "one seed for all"))
    },
)
