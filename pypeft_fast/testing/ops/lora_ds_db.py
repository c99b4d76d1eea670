from ...ops.lora_ds_db import lora_ds_db
from ..entry import Entry, Variant
from ..spoil import without_output


def eager(dY, B, s, scaling, need_dS, need_dB):
    S = s.dtype
    dS = (dY.to(S) * scaling) @ B.to(S)
    dB = ((dY.to(S) * scaling).t() @ s).to(B.dtype)
    return dS if need_dS else dS[:0], dB if need_dB else dB[:0]


SPOILED = {
    "zero dS": without_output(0),
    "zero dB": without_output(1),
    "no scaling": lambda f, dY, B, s, scaling, *need: f(dY, B, s, 1.0, *need),
}
ENTRY = Entry(
    op=lora_ds_db,
    arguments=lambda o: (o.dY, o.B, o.s, o.scaling, *o.option("need", (True, True))),
    eager=eager,
    variants={"": Variant({}, SPOILED)},
)
