import torch

from ...ops import philox
from ...ops.multi_lora_backward import multi_lora_backward
from ..entry import Entry, Variant
from . import lora_da, lora_ds_db
from ._adapters import Adapters


def eager(dY, x, W, A, B, index, s, mask, scalings, ps, need_dX, need_dA, need_dB):
    """The gradients, computed for each adapter separately from the rows of this adapter."""
    dX, dA, dB = dY @ W, [], []
    for i, (a, b) in enumerate(zip(A, B, strict=True)):
        own = index == i
        bits = mask[own] if ps[i] > 0 else None
        dS, up = lora_ds_db.eager(dY[own], b, s[own, : a.shape[0]], scalings[i], True, True)
        dX[own] += philox.dropped(dS.to(dY.dtype) @ a.to(dY.dtype), bits, ps[i])
        dA.append(lora_da.eager(dS, x[own], bits, ps[i], a.dtype))
        dB.append(up)
    return (
        dX if need_dX else dY.new_empty(0),
        [t.contiguous() for t in dA] if need_dA else [a.new_empty(0) for a in A],
        [t.contiguous() for t in dB] if need_dB else [b.new_empty(0) for b in B],
    )


def _arguments(o):
    its = Adapters(o)
    mask = None
    if o.p > 0:
        mask = torch.zeros(o.M, (o.K + 7) // 8, dtype=torch.uint8)
        for i, p in enumerate(its.ps):
            if p > 0:
                own = (its.index == i).unsqueeze(1)
                mask = torch.where(own, philox.packed_mask(o.M, o.K, p, its.seeds[i : i + 1]), mask)
    most = max(its.ranks)
    s = o._randn(o.M, most, dtype=o.adapter_dtype)
    needs = o.option("needs", (True,) * 3)
    return o.dY, o.x, o.weight, its.A, its.B, its.index, s, mask, its.scalings, its.ps, *needs


def _zero(index):
    def spoiled(f, *a):
        outputs = list(f(*a))
        out = outputs[index]
        outputs[index] = torch.zeros_like(out) if isinstance(out, torch.Tensor) else [torch.zeros_like(t) for t in out]
        return tuple(outputs)

    return spoiled


SPOILED = {
    "zero dX": _zero(0),
    "zero dA": _zero(1),
    "zero dB": _zero(2),
    "no base": lambda f, *a: f(*a[:2], torch.zeros_like(a[2]), *a[3:]),
    "no low rank": lambda f, *a: (f(*a[:3], [torch.zeros_like(A) for A in a[3]], *a[4:])[0], *f(*a)[1:]),
    "no dropout": lambda f, *a: f(*a[:7], None, a[8], [0.0] * len(a[9]), *a[10:]),
    "the neighbour's adapter": lambda f, *a: f(*a[:5], torch.where(a[5] == 0, 1, a[5]), *a[6:]),
    "the neighbour's scaling": lambda f, *a: f(*a[:8], [*a[8][1:], a[8][0]], *a[9:]),
    "rows off by one": lambda f, *a: f(*a[:5], a[5].roll(1), *a[6:]),
}
ENTRY = Entry(
    op=multi_lora_backward,
    arguments=_arguments,
    eager=eager,
    variants={
        "": Variant({}, SPOILED),
        "one adapter": Variant({"adapters": 1}, {"zero dA": _zero(1)}),
        "8 adapters": Variant({"adapters": 8}, {"the neighbour's adapter": SPOILED["the neighbour's adapter"]}),
        "64 adapters": Variant({"adapters": 64}, {"the neighbour's scaling": SPOILED["the neighbour's scaling"]}),
    },
)
