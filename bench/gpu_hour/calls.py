"""The cases of the layer table, and the calls of ops that a forward and backward pass of such a layer makes.

For the first case with bfloat16 adapters also the calls of this layer for rows of eight adapters.
"""

from dataclasses import replace

from pypeft_fast._op import OPS
from pypeft_fast.testing import Case as OpCase
from pypeft_fast.testing import sample

from ..harness.cases import Case
from . import device
from .device import BF16, F32

SHAPES = device.sized(((4096, 4096, 4096), (4096, 4096, 14336), (512, 4096, 4096), (16, 4096, 4096)), ((16, 24, 40),))
LORA = ("lora_shrink", "lora_linear", "lora_ds_db", "lora_dx", "lora_da")
SEGMENTS, ADAPTERS = ("multi_lora_forward", "multi_lora_backward"), {"adapters": 8}


def layer_cases():
    """Every shape with float32 and bfloat16 adapters, with dropout and without; the most important shapes first."""
    return [
        Case(*shape, p=p, dtype=BF16, adapter=adapter)
        for shape in SHAPES
        for adapter in device.sized((F32, BF16), (F32,))
        for p in device.sized((0.05, 0.0), (0.25,))
    ]


def ops_of(case):
    """[(op, arguments)] of one forward and backward pass of the layer, without bias, with all gradients."""
    sizes = OpCase(case.M, case.K, case.N, case.r, case.p, case.dtype, case.adapter, bias=False)
    calls = [(OPS[name], sample(name, sizes)) for name in LORA]
    if case == next((each for each in layer_cases() if each.adapter == BF16), layer_cases()[0]):
        calls += [(OPS[name], sample(name, replace(sizes, options=ADAPTERS))) for name in SEGMENTS]
    return calls
