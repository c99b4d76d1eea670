import torch.nn.functional as F

from ...ops.swiglu import swiglu
from ..entry import Entry, Variant
from ..spoil import unscaled, zeros

SPOILED = {
    "zeros": zeros,
    "no up": unscaled(1),
    "no sigmoid": lambda f, gate, up: gate * up,
    "operands exchanged": lambda f, gate, up: f(up, gate),
}
ENTRY = Entry(
    op=swiglu,
    arguments=lambda o: (o.gate, o.up),
    eager=lambda gate, up: F.silu(gate) * up,
    variants={"": Variant({}, SPOILED)},
)
