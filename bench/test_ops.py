"""`make bench-ops`: pytest-benchmark over the ops of one layer, each by every kernel that this machine has."""

import pytest
import torch

import pypeft_fast as pf
from bench.cases import Case, Operands
from pypeft_fast._op import OPS

CASE = Case(512, 576, 1536)


def kernels(op):
    return [k.name for k in OPS[op].kernels if k.missing() is None and "cpu" in (k.devices or ("cpu",))]


def arguments(op):
    """Of one launch of the op for CASE, with dropout where it takes part."""
    operands = Operands(CASE)
    x, dY, weight = operands.x.detach(), operands.dY, operands.weight
    A, B = (t.detach() for t in operands.adapters)
    _, mask = OPS["lora_shrink"](x, A, CASE.p, pf.ops.philox.draw_seed(x.device, None))
    s, scale, factors = torch.randn(CASE.M, CASE.r), torch.rand(CASE.N), torch.rand(CASE.K)
    return {
        "lora_linear": (x, weight, None, s, B, 2.0, None, False),
        "lora_linear, scale": (x, weight, None, s, B, 2.0, scale, True),
        "lora_ds_db": (dY, B, s, 2.0, True, True),
        "lora_dx": (dY, weight, s, A, mask, CASE.p),
        "lora_da": (s, x, mask, CASE.p, A.dtype),
        "ia3_linear": (x, weight, None, scale, False, True),
        "ia3_linear, feedforward": (x, weight, None, factors, True, False),
        "ia3_dx_dl": (dY, weight, scale, torch.randn(CASE.M, CASE.N), False, True, True),
        "ia3_dx_dl, feedforward": (dY, weight, factors, x, True, True, True),
    }[op]


ONE_PASS = ("lora_linear", "lora_linear, scale", "lora_ds_db", "lora_dx", "lora_da", "ia3_linear",
            "ia3_linear, feedforward", "ia3_dx_dl", "ia3_dx_dl, feedforward")  # fmt: skip


@pytest.mark.parametrize("what,kernel", [(what, k) for what in ONE_PASS for k in kernels(what.partition(",")[0])])
def test_op(benchmark, what, kernel):
    args = arguments(what)
    with pf.using(kernel):
        out = benchmark(OPS[what.partition(",")[0]], *args)
    assert (out[0] if isinstance(out, tuple) else out).abs().max() > 0


@pytest.mark.parametrize("kernel", kernels("lora_shrink"))
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


@pytest.mark.parametrize("kernel", kernels("swiglu"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_swiglu(benchmark, direction, dtype, kernel):
    dh, gate, up = (torch.randn(CASE.M, CASE.N).to(dtype) for _ in range(3))
    with pf.using(kernel):
        if direction == "forward":
            h = benchmark(OPS["swiglu"], gate, up)
        else:
            *_, h = benchmark(OPS["swiglu_backward"], dh, gate, up, True)
    assert h.shape == gate.shape and h.abs().max() > 0
