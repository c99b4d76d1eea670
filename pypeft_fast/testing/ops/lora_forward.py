from ...ops.lora_forward import lora_forward
from ..entry import Entry, Variant
from ..spoil import without, without_output
from . import lora_linear, lora_shrink


def eager(x, W, b, A, B, scaling, p, seed):
    s, mask = lora_shrink.eager(x, A, p, seed)
    return lora_linear.eager(x, W, b, s, B, scaling, None, False)[0], s, mask


SPOILED = {
    "zero y": without_output(0),
    "zero s": without_output(1),
    "no base": without(1),
    "no bias": without(2),
    "no low rank": without(4),
    "no dropout": lambda f, *a: (f(*a[:6], 0.0, None)[0], *f(*a)[1:]),
}
ENTRY = Entry(
    op=lora_forward,
    arguments=lambda o: (o.x, o.weight, o.bias, o.A / o.K**0.5, o.B, o.scaling, o.p, o.seed),
    eager=eager,
    variants={"": Variant({}, SPOILED)},
)
