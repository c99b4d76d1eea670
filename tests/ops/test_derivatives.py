"""Derivatives of the ops themselves, without an autograd.Function: right values or an error, never silent zeros."""

import io

import pytest
import torch
from torch.autograd import forward_ad

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, available, sample
from tests.device import DEVICE

F64 = torch.float64
WITH_FORMULA = ("lora_forward", "lora_shrink", "lora_linear", "multi_lora_forward", "ia3_linear", "swiglu")
OF_FLOATS = sorted(set(OPS) - {"dequantize"})  # dequantize has no inputs that are trained
WITHOUT = sorted(set(OF_FLOATS) - set(WITH_FORMULA))
OPTIONS = {
    "lora_linear": [{}, {"scale": True}, {"scale": True, "need_z": False}],
    "ia3_linear": [{}, {"need_z": False}, {"feedforward": True}],
}
CASES = [
    (op, Case(3, 9, 5, 2, p, F64, bias=bias, options=options))
    for op in WITH_FORMULA
    for options in OPTIONS.get(op, [{}])
    for p, bias in ((0.0, True), (0.4, False))
]


def overload(name):
    return getattr(torch.ops.pypeft_fast, name).default


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def floats(outputs):
    """The outputs that are floating-point and not empty."""
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(t for t in outputs if t.is_floating_point() and t.numel())


def floating(args):
    return [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.is_floating_point()]


def training(args, only=None):
    args = list(args)
    for i in floating(args):
        args[i] = args[i].detach().clone().requires_grad_(only in (None, i))
    return args


@pytest.mark.parametrize("op,case", CASES, ids=str)
def test_the_formula_is_the_derivative(op, case):
    args = training(sample(op, case))
    assert torch.autograd.gradcheck(lambda *a: floats(overload(op)(*a)), args)
    assert torch.autograd.gradcheck(lambda *a: floats(overload(op)(*a))[:1], args)
    assert torch.autograd.gradcheck(lambda *a: floats(overload(op)(*a))[-1:], args)


@pytest.mark.parametrize("op,case", CASES, ids=str)
def test_each_gradient_alone_equals_that_of_a_call_for_all(op, case):
    given = sample(op, case)
    everything = training(given)
    y = first(overload(op)(*everything))
    dY = torch.randn_like(y)
    y.backward(dY)
    for i in floating(given):
        alone = training(given, only=i)
        first(overload(op)(*alone)).backward(dY)
        torch.testing.assert_close(alone[i].grad, everything[i].grad)
        assert all(alone[j].grad is None for j in floating(given) if j != i)


@pytest.mark.parametrize("adapter", [None, torch.float32], ids=str)
@pytest.mark.parametrize("op", WITH_FORMULA)
def test_gradients_of_half_precision_have_their_parameters_dtypes(op, adapter):
    for options in OPTIONS.get(op, [{}]):
        args = training(sample(op, Case(4, 16, 8, 2, 0.3, torch.bfloat16, adapter, options=options)))
        first(overload(op)(*args)).float().square().sum().backward()
        for i in floating(args):
            assert args[i].grad.dtype == args[i].dtype and args[i].grad.abs().sum() > 0


def test_each_projection_of_a_stack_has_its_own_mask_in_the_gradients():
    x, A = torch.randn(3, 9, dtype=F64, device=DEVICE), torch.randn(4, 9, dtype=F64, device=DEVICE)
    seed = torch.tensor([3, 4], device=DEVICE)
    assert torch.autograd.gradcheck(
        lambda x, A: OPS["lora_shrink"](x, A, 0.4, seed)[0], (x.requires_grad_(), A.requires_grad_())
    )


@pytest.mark.parametrize("op", WITH_FORMULA)
def test_opcheck_with_gradients(op):
    # The gradients come from other ops, which lack "triton+blas", and "cuda" for rows of several adapters.
    of_all = available(OPS["multi_lora_backward" if op == "multi_lora_forward" else "lora_shrink"])
    for kernel in (kernel for kernel in available(OPS[op]) if kernel in of_all):
        with pf.using(kernel):
            torch.library.opcheck(overload(op), training(sample(op, Case(4, 16, 8, 2, 0.3))))


@pytest.mark.parametrize("op", WITHOUT)
def test_an_op_without_a_formula_is_an_error_where_a_gradient_is_asked_for(op):
    args = training(sample(op, Case(p=0.3)))
    for call in (OPS[op], overload(op)):
        with pytest.raises(RuntimeError, match=f"^{op}: it has no derivative.*differentiate pf.lora_linear"):
            call(*args)
    with torch.no_grad():
        OPS[op](*args)
    OPS[op](*sample(op, Case(p=0.3)))


@pytest.mark.parametrize("op", [name for name in OF_FLOATS if "cpu" in available(OPS[name])])
def test_a_cpp_kernel_called_by_its_name_is_an_error_too(op):
    with pytest.raises(RuntimeError, match=f"^{op}_cpu: it has no derivative"):
        overload(f"{op}_cpu")(*training(sample(op, Case(p=0.3))))


@pytest.mark.parametrize("op", OF_FLOATS)
def test_forward_mode_is_an_error(op):
    args = list(sample(op, Case(p=0.3)))
    i = floating(args)[0]

    def of_one(value):
        return first(OPS[op](*args[:i], value, *args[i + 1 :]))

    with torch.no_grad(), pytest.raises(RuntimeError, match=f"^{op}: it has no forward-mode derivative"):
        torch.func.jvp(of_one, (args[i],), (torch.ones_like(args[i]),))
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode, forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
            of_one(forward_ad.make_dual(args[i], torch.ones_like(args[i])))
    with forward_ad.dual_level():
        of_one(args[i])  # a dual level without a tangent is no error


@pytest.mark.parametrize("op", WITH_FORMULA)
def test_second_derivatives_are_refused_only_when_they_are_taken(op):
    args = training(sample(op, Case(p=0.3)))
    i = floating(args)[0]
    (gradient,) = torch.autograd.grad(first(OPS[op](*args)).square().sum(), args[i], create_graph=True)
    with pytest.raises(RuntimeError, match="pypeft_fast has no second derivatives"):
        gradient.sum().backward()


X, W, A, B = (torch.randn(*shape, device=DEVICE) for shape in ((3, 8), (6, 8), (2, 8), (6, 2)))


def test_compiled_torch_func_grad_is_right():
    """The backend is not inductor, because its cache on disk could hold an older formula."""
    compiled = torch.compile(torch.func.grad(lambda A: pf.lora_linear(X, W, A, B).square().sum()), backend="aot_eager")
    expected = torch.func.grad(lambda A: (X @ W.t() + X @ A.t() @ B.t()).square().sum())(A)
    torch.testing.assert_close(compiled(A), expected)


def test_a_compiled_functional_call_is_right():
    layer = pf.nn.LoRALinear(8, 6, r=2, device=DEVICE)
    torch.nn.init.normal_(layer.lora_B)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(layer, parameters, (X,)).square().sum()

    found = torch.compile(torch.func.grad(loss), backend="aot_eager")(parameters)
    layer(X).square().sum().backward()
    for name in ("lora_A", "lora_B"):
        torch.testing.assert_close(found[name], getattr(layer, name).grad)


def test_gradients_of_every_sample():
    def loss(A, x):
        return OPS["lora_forward"](x, W, None, A, B, 1.0, 0.0, None)[0].square().sum()

    found = torch.func.vmap(torch.func.grad(loss), (None, 0))(A, X[:, None])
    expected = [torch.func.grad(loss)(A, x[None]) for x in X]
    torch.testing.assert_close(found, torch.stack(expected))


LAYERS = {
    "LoRA": lambda: pf.nn.LoRALinear(8, 6, r=2),
    "DoRA": lambda: pf.nn.LoRALinear(8, 6, r=2, use_dora=True),
    "IA3": lambda: pf.nn.IA3Linear(8, 6),
    "IA3, feedforward": lambda: pf.nn.IA3Linear(8, 6, feedforward=True),
}


@pytest.mark.parametrize("name", LAYERS)
def test_an_exported_layer_trains(name):
    layer = LAYERS[name]().to(DEVICE)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    program = torch.export.export(layer, (X,))
    torch.export.save(program, file := io.BytesIO())
    file.seek(0)
    layer(X).square().sum().backward()
    expected = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    for exported in (program.module(), torch.export.load(file).module()):
        for p in exported.parameters():
            p.grad = None
        exported(X).square().sum().backward()
        found = {name: p.grad for name, p in exported.named_parameters() if p.grad is not None}
        torch.testing.assert_close(found, expected)
