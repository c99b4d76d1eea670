"""`make bench-ops`: pytest-benchmark over the ops of one layer, each by every kernel that this machine has."""

import pytest

import pypeft_fast as pf
from bench.cases import Case, Operands
from pypeft_fast._op import OPS

CASE = Case(512, 576, 1536)
SHRINKING = [k.name for k in OPS["lora_shrink"].kernels if k.missing() is None and "cpu" in (k.devices or ("cpu",))]


@pytest.mark.parametrize("kernel", SHRINKING)
@pytest.mark.parametrize("p", [0.0, 0.05])
def test_lora_shrink(benchmark, kernel, p):
    operands = Operands(CASE)
    seed = pf.ops.philox.draw_seed(operands.x.device, None) if p else None
    with pf.using(kernel):
        s, _ = benchmark(OPS["lora_shrink"], operands.x.detach(), operands.adapters[0].detach(), p, seed)
    assert s.shape == (CASE.M, CASE.r) and s.abs().max() > 0


@pytest.mark.parametrize("p", [0.0, 0.05])
def test_lora_forward(benchmark, p):
    operands = Operands(CASE)
    A, B = (t.detach() for t in operands.adapters)
    seed = pf.ops.philox.draw_seed(A.device, None) if p else None
    y, *_ = benchmark(OPS["lora_forward"], operands.x.detach(), operands.weight, None, A, B, 2.0, p, seed)
    assert y.shape == (CASE.M, CASE.N) and y.abs().max() > 0


@pytest.mark.parametrize("p", [0.0, 0.05])
def test_lora_backward(benchmark, p):
    operands = Operands(CASE)
    x, A, B = (t.detach() for t in (operands.x, *operands.adapters))
    seed = pf.ops.philox.draw_seed(A.device, None) if p else None
    _, s, mask = OPS["lora_forward"](x, operands.weight, None, A, B, 2.0, p, seed)
    arguments = operands.dY, x, operands.weight, A, B, s, mask if p else None, 2.0, p, True, True, True, A.dtype
    dX, *_ = benchmark(OPS["lora_backward"], *arguments)
    assert dX.shape == x.shape and dX.abs().max() > 0
