from ...ops.lora_backward import lora_backward
from ..entry import Entry, Variant
from ..spoil import without, without_output
from . import lora_da, lora_ds_db, lora_dx


def eager(dY, x, W, A, B, s, mask, scaling, p, need_dX, need_dA, need_dB, dtype):
    dS, dB = lora_ds_db.eager(dY, B, s, scaling, True, need_dB)
    dX, dA = lora_dx.eager(dY, W, dS, A, mask, p), lora_da.eager(dS, x, mask, p, dtype)
    return dX if need_dX else dY.new_empty(0), dA if need_dA else A.new_empty(0), dB if need_dB else B.new_empty(0)


def _arguments(o):
    mask, needs = o.mask if o.p > 0 else None, o.option("needs", (True,) * 3)
    return o.dY, o.x, o.weight, o.A, o.B / o.r**0.5, o.s, mask, o.scaling, o.p, *needs, o.adapter_dtype


SPOILED = {
    "zero dX": without_output(0),
    "zero dA": without_output(1),
    "zero dB": without_output(2),
    "no base": without(2),
    "no low rank": without(3),
    "no scaling": lambda f, *a: f(*a[:7], 1.0, *a[8:]),
    "no dropout": lambda f, *a: f(*a[:6], None, a[7], 0.0, *a[9:]),
}
ENTRY = Entry(op=lora_backward, arguments=_arguments, eager=eager, variants={"": Variant({}, SPOILED)})
