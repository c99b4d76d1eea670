from ...ops.ia3_dx_dl import ia3_dx_dl
from ..entry import Entry, Variant
from ..spoil import unscaled, without_output


def eager(dY, W, ia3_l, saved, feedforward, need_dX, need_dl):
    dX = dY @ W if feedforward else (dY * ia3_l).to(dY.dtype) @ W
    P = ia3_l.dtype
    dl = ((dX if feedforward else dY).to(P) * saved.to(P)).sum(0)
    dX = (dX * ia3_l).to(dY.dtype) if feedforward else dX
    return dX if need_dX else dX[:0], dl if need_dl else dl[:0]


SPOILED = {
    "zero dX": without_output(0),
    "zero dl": without_output(1),
    "no scaling": unscaled(2),
    "a row lost in dl": lambda f, *a: (f(*a)[0], f(a[0][1:], *a[1:3], a[3][1:], *a[4:])[1]),
}
ENTRY = Entry(
    op=ia3_dx_dl,
    arguments=lambda o: (o.dY, o.weight, o.ia3_l, o.saved, o.feedforward, *o.option("need", (True, True))),
    eager=eager,
    variants={"": Variant({}, SPOILED), "feedforward": Variant({"feedforward": True}, SPOILED)},
)
