import torch
import torch.nn.functional as F

from ...ops import philox
from ...ops.lora_shrink import lora_shrink
from ..entry import Entry, Variant
from ..spoil import zeros


def eager(x, A, p, seed):
    S = torch.promote_types(x.dtype, A.dtype)
    mask = philox.packed_mask(*x.shape, p, seed) if p > 0 else torch.empty(0, (x.shape[1] + 7) // 8, dtype=torch.uint8)
    return F.linear(philox.dropped(x.to(S), mask, p), A.to(S)), mask


def _without_mask(kernel, x, A, p, seed):
    return kernel(x, A, 0.0, None)[0], kernel(x, A, p, seed)[1]


def _without_scale(kernel, x, A, p, seed):
    s, mask = kernel(x, A, p, seed)
    return s / philox.scale(p), mask


ENTRY = Entry(
    op=lora_shrink,
    arguments=lambda o: (o.x, o.A, o.p, o.seed),
    eager=eager,
    variants={"": Variant({}, {"zeros": zeros, "no mask": _without_mask, "no scale": _without_scale})},
)
