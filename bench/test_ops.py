"""`make bench-ops`: pytest-benchmark for every op with every kernel that runs on this machine's CPU."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import VARIANTS, Case, sample

DROPS_OUT = ("lora_shrink", "lora_forward", "lora_backward", "lora_dx", "lora_da")
HALF = ("swiglu", "swiglu_backward")  # timed in bfloat16 too


def kernels(op):
    return [k.name for k in OPS[op].kernels if k.missing() is None and "cpu" in (k.devices or ("cpu",))]


RUNS = [
    (title, p, dtype, kernel)
    for title, (op, _) in VARIANTS.items()
    for p in ((0.0, 0.05) if op in DROPS_OUT else (0.0,))
    for dtype in ((torch.float32, torch.bfloat16) if op in HALF else (torch.float32,))
    for kernel in kernels(op)
]


@pytest.mark.parametrize("title,p,dtype,kernel", RUNS)
def test_op(benchmark, title, p, dtype, kernel):
    op, options = VARIANTS[title]
    args = sample(op, Case(512, 576, 1536, 16, p, dtype, bias=False, options=options))
    with pf.using(kernel):
        out = benchmark(OPS[op], *args)
    assert (out[0] if isinstance(out, tuple) else out).abs().max() > 0
