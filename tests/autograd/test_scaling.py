"""The scaling of an adapter as a number, as a tensor with a gradient, and under torch.compile."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import pypeft_fast as pf
from pypeft_fast.autograd._scaling import scaling_into
from pypeft_fast.autograd.bottleneck import bottleneck

K, N, R = 8, 6, 2


def leaves(dtype=torch.float32, adapter=None):
    torch.manual_seed(0)
    shapes = dict(x=(5, K), up=(5, K), W=(N, K), A=(R, K), B=(N, R), m=(N,), a=(R,), b=(N,))
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    tensors["m"] = tensors["m"].abs() + 1
    given = {n: t.to(dtype if n in ("x", "up", "W") else adapter or dtype) for n, t in tensors.items()}
    return {n: t.requires_grad_(n != "W") for n, t in given.items()}


def dora_formula(t, scaling):
    length = (t["W"] + scaling * t["B"] @ t["A"]).norm(dim=1).detach()
    return t["m"] / length * (F.linear(t["x"], t["W"]) + scaling * (t["x"] @ t["A"].t()) @ t["B"].t())


def lora_formula(x, t, scaling):
    return F.linear(x, t["W"]) + scaling * ((x @ t["A"].t()) @ t["B"].t()).to(x.dtype)


def bottleneck_formula(t, scaling):
    update = F.linear(F.linear(t["x"], t["A"], t["a"]).relu(), t["B"], t["b"])
    return t["up"][:, :N] + scaling * update


OURS = {
    "lora": lambda t, scaling, **o: pf.lora_linear(t["x"], t["W"], t["A"], t["B"], scaling=scaling, **o),
    "dora": lambda t, scaling, **o: pf.dora_linear(t["x"], t["W"], t["A"], t["B"], t["m"], scaling=scaling, **o),
    "gated": lambda t, scaling, **o: pf.lora_gated_linear(
        t["x"], t["up"], t["W"], t["A"], t["B"], scaling=scaling, **o
    ),
    "bottleneck": lambda t, scaling, **o: bottleneck(
        t["x"], t["A"], t["a"], t["B"], t["b"], residual=t["up"][:, :N], scaling=scaling, **o
    ),
}
FORMULAS = {
    "lora": lambda t, scaling: lora_formula(t["x"], t, scaling),
    "dora": dora_formula,
    "gated": lambda t, scaling: lora_formula(F.silu(t["x"]) * t["up"], t, scaling),
    "bottleneck": bottleneck_formula,
}
EVERY = pytest.mark.parametrize("name", list(OURS))


@EVERY
@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("value", [0.7, 0.0, -3.0])
def test_a_tensor_has_its_gradient(name, shape, value):
    scaling, results = torch.full(shape, value, requires_grad=True), []
    for function in (OURS[name], FORMULAS[name]):
        t = leaves()
        y = function(t, scaling)
        inputs = [scaling, *(v for v in t.values() if v.requires_grad)]
        results.append((y, *torch.autograd.grad(y.square().sum(), inputs, allow_unused=True)))
    for ours, expected in zip(*results, strict=True):
        assert (ours is None) == (expected is None)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert results[0][1].abs().max() > 0.1


@EVERY
@pytest.mark.parametrize(
    "scaling", [torch.tensor(2.0), torch.tensor([2]), torch.tensor(2.0, dtype=torch.float64)], ids=str
)
@pytest.mark.parametrize(
    "dtype,adapter", [(torch.float32, None), (torch.bfloat16, None), (torch.float16, torch.float32)]
)
def test_a_tensor_is_its_number(name, scaling, dtype, adapter):
    results = []
    for given in (scaling, 2.0):
        t = leaves(dtype, adapter)
        y = OURS[name](t, given)
        y.float().square().sum().backward()
        with torch.no_grad():
            assert torch.equal(OURS[name](t, given), y)
        results.append((y, *(v.grad for v in t.values())))
    for a, b in zip(*results, strict=True):
        assert a is b is None or a.dtype == b.dtype
        ulp = 0 if b is None else torch.finfo(b.dtype).eps * b.abs().max().item()  # of the largest value
        torch.testing.assert_close(a, b, rtol=1e-5, atol=ulp)


@EVERY
def test_a_tensor_of_several_is_refused(name):
    with pytest.raises(ValueError, match=r"scaling has shape \(2,\); give one number"):
        OURS[name](leaves(), torch.ones(2))


def graphs(function, values):
    """The number of graphs of torch.compile for these values in turn; compares every result with eager PyTorch."""
    torch.compiler.reset()
    counter, t = CompileCounterWithBackend("aot_eager"), leaves()
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for value in values:
        results = []
        for run in (compiled, function):
            torch.manual_seed(1)
            y = run(t, value)
            results.append((y, *torch.autograd.grad(y.square().sum(), (t["A"], t["B"]))))
        torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    return counter.frame_count


@EVERY
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_a_dozen_values_compile_as_few_graphs_as_the_formula(name, p):
    values = [1.5 + i for i in range(12)]
    assert graphs(lambda t, s: OURS[name](t, s, dropout_p=p), values) == graphs(FORMULAS[name], values) == 2


@EVERY
@pytest.mark.parametrize("grad", [False, True])
def test_tensors_compile_one_graph(name, grad):
    assert graphs(OURS[name], [torch.tensor(1.5 + i, requires_grad=grad) for i in range(12)]) == 1


def test_a_constant_stays_in_the_op():
    """The graph of a layer with a constant factor has no separate product."""
    captured = []

    def backend(graph, inputs):
        captured.append(graph)
        return graph

    torch.compiler.reset()
    layer = pf.nn.LoRALinear(K, N, r=R)
    torch.compile(layer, backend=backend, fullgraph=True)(torch.randn(5, K))
    assert "mul" not in str(captured[0].graph) and len(captured) == 1


@pytest.mark.parametrize("name", ["lora", "dora", "gated", "bottleneck"])
def test_a_generator_under_compile(name):
    """PyTorch breaks the graph at a generator; the values are the same as without compile."""
    t, results = leaves(), []
    torch.compiler.reset()
    for run in (OURS[name], torch.compile(OURS[name], backend="aot_eager")):
        results.append(run(t, 0.5, dropout_p=0.5, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(*results) and results[0].requires_grad


def test_a_parameter_in_half_precision_is_not_rounded_again():
    B = torch.randn(N, R).bfloat16()
    one, scaled = scaling_into("f", torch.tensor(0.3), B)
    assert one == 1.0 and torch.equal(scaled, B.float() * 0.3) and scaled.dtype == torch.float32
