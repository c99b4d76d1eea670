from ...ops import philox
from ...ops.lora_da import lora_da
from ..entry import Entry, Variant
from ..spoil import zeros


def eager(dS, x, mask, p, dtype):
    return (dS.t() @ philox.dropped(x.to(dS.dtype), mask, p)).to(dtype)


SPOILED = {
    "zeros": zeros,
    "no mask": lambda f, dS, x, mask, p, dtype: f(dS, x, mask, 0.0, dtype),
    "no scale": lambda f, dS, x, mask, p, dtype: f(dS, x, mask, p, dtype) / philox.scale(p),
}
ENTRY = Entry(
    op=lora_da,
    arguments=lambda o: (o.dS, o.x, o.mask, o.p, o.adapter_dtype),
    eager=eager,
    variants={"": Variant({}, SPOILED)},
)
