import torch
import torch.nn.functional as F

from ...ops.swiglu_backward import swiglu_backward
from ..entry import Entry, Variant
from ..spoil import unscaled, without_output


def eager(dh, gate, up, need_h):
    silu = F.silu(gate)
    dgate = torch.ops.aten.silu_backward(dh * up, gate)
    return dgate.contiguous(), dh * silu, silu * up if need_h else dh.new_empty(0)


SPOILED = {
    "zero dgate": without_output(0),
    "zero dup": without_output(1),
    "zero h": without_output(2),
    "no dh": unscaled(0),
    "no second term": lambda f, dh, gate, up, need: (dh * up * torch.sigmoid(gate), *f(dh, gate, up, need)[1:]),
}
ENTRY = Entry(
    op=swiglu_backward,
    arguments=lambda o: (o.dY, o.gate, o.up, o.option("need_h", True)),
    eager=eager,
    variants={"": Variant({}, SPOILED)},
)
