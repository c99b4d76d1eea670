import torch.nn.functional as F

from ...ops.ia3_linear import ia3_linear
from ..entry import Entry, Variant
from ..spoil import unscaled, without, zeros


def eager(x, W, b, ia3_l, feedforward, need_z):
    if feedforward:
        return F.linear((x * ia3_l).to(x.dtype), W, b), x.new_empty(0, W.shape[0])
    z = F.linear(x, W, b)
    return (z * ia3_l).to(x.dtype), z if need_z else z[:0]


SPOILED_FEEDFORWARD = {  # feedforward has no output z
    "zeros": zeros,
    "no scaling": unscaled(3),
    "no bias": without(2),
    "no base": without(1),
}
SPOILED = SPOILED_FEEDFORWARD | {"z is y": lambda f, *a: (f(*a)[0], f(*a)[0][: len(f(*a)[1])])}
ENTRY = Entry(
    op=ia3_linear,
    arguments=lambda o: (o.x, o.weight, o.bias, o.ia3_l, o.feedforward, o.option("need_z", True)),
    eager=eager,
    variants={"": Variant({}, SPOILED), "feedforward": Variant({"feedforward": True}, SPOILED_FEEDFORWARD)},
)
