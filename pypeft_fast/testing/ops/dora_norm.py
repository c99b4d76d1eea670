import torch

from ...ops.dora_norm import dora_norm
from ..entry import Entry, Variant
from ..spoil import without, zeros


def eager(W, A, B, scaling):
    wide = torch.promote_types(W.dtype, torch.float32)
    return torch.linalg.vector_norm(W + ((B @ A) * scaling).to(W.dtype), dim=1, dtype=wide)


SPOILED = {
    "zeros": zeros,
    "no base": without(0),
    "no low rank": without(1),
    "no scaling": lambda f, W, A, B, scaling: f(W, A, B, 1.0),
}
ENTRY = Entry(
    op=dora_norm,
    arguments=lambda o: (o.weight, o.A, o.B / o.r**0.5, o.scaling),
    eager=eager,
    variants={"": Variant({}, SPOILED)},
)
