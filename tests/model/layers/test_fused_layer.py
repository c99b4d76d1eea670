"""The cases in which a fused layer calls PEFT: each reason is counted, and the result equals PEFT's bit for bit."""

import copy

import peft
import pytest
import torch
from peft.helpers import disable_input_dtype_casting
from torch import nn
from torch.nn.utils import parametrize

import pypeft_fast as pf
from pypeft_fast.model.layers import fused_layer
from pypeft_fast.model.layers.fused_layer import AROUND
from tests.device import DEVICE
from tests.gradients import model_with_gradients
from tests.model import zoo


def layer(linear=None, **options):
    config = dict(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False) | options
    torch.manual_seed(1)
    return peft.get_peft_model(nn.Sequential(linear or nn.Linear(12, 9)), peft.LoraConfig(**config))


class Doubled(nn.Module):
    def forward(self, value):
        return value * 2


class Named(nn.Linear):
    """A subclass that inherits the forward of nn.Linear."""


class Subclass(nn.Linear):
    """A subclass with another forward, whose result is that of nn.Linear."""

    def forward(self, x):
        return super().forward(x)


class OfItsOwn(torch.Tensor):
    pass


def patched_forward(module):
    inner = module.forward
    module.forward = lambda *args: inner(*args) * 3


def add_adapter(model, **options):
    model.add_adapter("b", peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False, **options))
    model.base_model.set_adapter(["default", "b"])


# {reason that the next call must count: change to a fused layer}.
CHANGES = {
    "the base layer has hooks": lambda m, t: t.base_layer.register_forward_hook(lambda mod, a, out: out * 2),
    "the base layer has hooks or a forward": lambda m, t: patched_forward(t.base_layer),
    "lora_A has hooks": lambda m, t: t.lora_A["default"].register_forward_pre_hook(lambda mod, a: (a[0] * 2,)),
    "lora_B has hooks": lambda m, t: patched_forward(t.lora_B["default"]),
    "lora_dropout has hooks": lambda m, t: t.lora_dropout["default"].register_forward_hook(lambda *a: a[2] * 2),
    "lora_dropout is a Doubled": lambda m, t: t.lora_dropout.update({"default": Doubled()}),
    "lora_dropout is in place or drops all": lambda m, t: t.lora_dropout.update({"default": nn.Dropout(1.0)}),
    "the base layer is a Subclass": lambda m, t: setattr(t, "base_layer", Subclass(12, 9)),
    "lora_A is a ParametrizedLinear": lambda m, t: parametrize.register_parametrization(
        t.lora_A["default"], "weight", Doubled()
    ),
    "lora_A is torch.float64 beside torch.float32": lambda m, t: t.lora_A.double() and t.lora_B.double(),
    "lora_A is torch.bfloat16 beside torch.float32": lambda m, t: t.lora_A.bfloat16() and t.lora_B.bfloat16(),
    "several active adapters of which one is DoRA": lambda m, t: add_adapter(m, use_dora=True),
    "the adapter is of a variant, ALoraLinearVariant": lambda m, t: add_adapter(m, alora_invocation_tokens=[1]),
    "lora_bias=True": lambda m, t: add_adapter(m, lora_bias=True),
}


@pytest.mark.parametrize("reason", CHANGES)
@pytest.mark.filterwarnings("ignore")
def test_a_change_after_fusing_is_noticed(reason):
    model = layer().train()
    x = torch.randn(5, 12)
    before = model(x)
    report = pf.fuse(model, strict=True)
    torch.testing.assert_close(model(x), before)
    assert report.calls() == {"fused": 1}
    torch.manual_seed(2)
    CHANGES[reason](model, model.base_model.model[0])
    torch.manual_seed(3)
    got = model(x)
    (counted,) = set(report.calls()) - {"fused"}
    is_around = reason.startswith("the base layer")
    assert counted.startswith(AROUND * is_around + reason) and report.calls()[counted] == 1
    pf.unfuse(model)
    torch.manual_seed(3)
    if is_around:
        torch.testing.assert_close(got, model(x))
    else:
        assert torch.equal(got, model(x))
    assert not torch.equal(got, before) or "ALora" in reason  # ALoRA changes nothing without offsets


@pytest.mark.parametrize("parametrized", [False, True])
def test_a_subclass_with_the_forward_of_linear_runs_fused(parametrized):
    model, x = layer(Named(12, 9)), torch.randn(5, 12)
    if parametrized:  # it has a class of its own, and computes its weight at every access
        parametrize.register_parametrization(model.base_model.model[0].base_layer, "weight", Doubled())
    expected, report = model(x), pf.fuse(model, strict=True)
    torch.testing.assert_close(model(x), expected)
    assert report.calls() == {"fused": 1}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_the_ordinary_call_is_recognised_without_asking_for_reasons(bias, dtypes, training, monkeypatch):
    base, adapter = (getattr(torch, name) for name in dtypes)
    model = layer(nn.Linear(12, 9, bias, dtype=base), lora_dropout=0.1).train(training)
    model.base_model.model[0].lora_A.to(adapter), model.base_model.model[0].lora_B.to(adapter)
    report, x = pf.fuse(model, strict=True), torch.randn(5, 12, dtype=base)
    adapted = model.base_model.model[0]
    A, B, p = adapted.lora_A["default"].weight, adapted.lora_B["default"].weight, 0.1 * training
    torch.manual_seed(5)
    asked = pf.lora_linear(x, *[adapted.base_layer.weight, A, B, adapted.base_layer.bias], scaling=2.0, dropout_p=p)
    assert torch.equal(model.eval()(x), model(x)) and model.train(training)(x).shape == asked.shape
    monkeypatch.setattr(fused_layer, "why_not", None)
    torch.manual_seed(5)
    assert torch.equal(model(x), asked) and report.calls() == {"fused": 4}


def swapped(tensor, data):
    tensor.data = data


# {reason: change of a Parameter through .data}, as ZeRO-3 does; the Parameter object is the same.
SWAPPED = {
    "the base weight has no two dimensions": lambda t: swapped(t.base_layer.weight, torch.empty(0)),
    "the base bias is torch.float64": lambda t: swapped(t.base_layer.bias, t.base_layer.bias.data.double()),
    "lora_A and lora_B are partitioned": lambda t: swapped(t.lora_A["default"].weight, torch.empty(0)),
    "lora_B is torch.float64": lambda t: swapped(t.lora_B["default"].weight, t.lora_B["default"].weight.data.double()),
}


@pytest.mark.parametrize("reason", SWAPPED)
def test_swapped_data_of_a_parameter_is_noticed(reason):
    model = layer()
    report, x = pf.fuse(model, strict=True), torch.randn(5, 12)
    model(x)
    SWAPPED[reason](model.base_model.model[0])
    with pytest.raises((RuntimeError, ValueError)):  # PEFT cannot either
        model(x)
    found = [r.removeprefix(AROUND) for r in report.calls()]
    assert report.calls()["fused"] == 1 and any(r.startswith(reason) for r in found), report.calls()


def test_a_layer_with_an_obstacle_at_fusing_is_not_changed():
    for linear, options, reason in [
        (Subclass(12, 9), dict(use_dora=True), "the base layer is a Subclass"),
        (nn.Linear(12, 9), dict(alora_invocation_tokens=[1]), "the adapter is of a variant"),
        (nn.Linear(12, 9), dict(lora_bias=True), "lora_bias=True"),
    ]:
        model = layer(linear, **options)
        report = pf.fuse(model)
        assert not report.fused and list(report.left.values())[0].startswith(reason)
        assert type(model.base_model.model[0]) is peft.tuners.lora.Linear
        with pytest.raises(ValueError, match=reason):
            pf.fuse(model, strict=True)
        config = pf.register(peft.LoraConfig(target_modules=["0"], **options))
        built = peft.get_peft_model(nn.Sequential(copy.deepcopy(linear)), config)
        assert type(built.base_model.model[0]) is peft.tuners.lora.Linear


def called(change, run, **options):
    """The counts of the report after `change` of a fused layer and a call by `run`."""
    model = layer(**options)
    change(model)
    report = pf.fuse(model)
    run(model)
    return dict(report.calls())


def test_inputs_and_transforms_that_the_ops_do_not_accept_run_in_peft():
    x = torch.randn(5, 12)
    assert called(lambda m: None, lambda m: m(x.as_subclass(OfItsOwn))) == {"the input is a OfItsOwn": 1}
    assert called(lambda m: None, lambda m: torch.func.vmap(m)(x)) == {
        "a torch.func transform or forward-mode differentiation is active": 1
    }
    assert called(lambda m: None, lambda m: torch.func.jvp(m, (x,), (x,))) == {
        "a torch.func transform or forward-mode differentiation is active": 1
    }
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        called(lambda m: None, lambda m: m(x[:, :5]))
    with pytest.raises(RuntimeError, match="same dtype"):
        called(lambda m: None, lambda m: m(x.double()))

    def uncast(model):
        with disable_input_dtype_casting(model):
            with pytest.raises(RuntimeError, match="same dtype"):
                model(x.bfloat16())

    assert called(lambda m: m.base_model.model[0].base_layer.bfloat16(), uncast) == {
        "casting of the input is switched off": 1
    }


def of_linears(change):
    return lambda module, *args: change(args) if type(module) is nn.Linear else None


def doubled_grads(args):
    return tuple(None if grad is None else 2 * grad for grad in args[0])


hooks = nn.modules.module
GLOBAL_HOOKS = {
    "forward": lambda: hooks.register_module_forward_hook(of_linears(lambda args: 2 * args[1])),
    "forward pre": lambda: hooks.register_module_forward_pre_hook(of_linears(lambda args: 2 * args[0][0])),
    "backward": lambda: hooks.register_module_full_backward_hook(of_linears(doubled_grads)),
    "backward pre": lambda: hooks.register_module_full_backward_pre_hook(of_linears(doubled_grads)),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.parametrize("kind", GLOBAL_HOOKS)
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_hooks_on_every_module_are_called(kind, method, compiled):
    """Also for base_layer, lora_A and lora_B, which a fused layer does not call. Compiling comes after the hooks."""
    model, x = layer(), torch.randn(5, 12, requires_grad=True)
    if method == "ia3":
        config = peft.IA3Config(target_modules=["0"], feedforward_modules=[], init_ia3_weights=False)
        model = peft.get_peft_model(nn.Sequential(nn.Linear(12, 9)), config)

    without, handle = model_with_gradients(model, x), GLOBAL_HOOKS[kind]()
    try:
        expected = model_with_gradients(model, x)
        report = pf.fuse(model, strict=True)
        got = model_with_gradients(torch.compile(model, backend="aot_eager") if compiled else model, x)
    finally:
        handle.remove()
    torch.testing.assert_close(got, expected)
    assert not torch.allclose(without[1], expected[1])
    assert report.calls() == ({} if compiled else {"a global module hook is registered": 1})
    torch._dynamo.reset()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["lora", "ia3"])
@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_a_forward_that_stands_for_every_linear_layer_is_called(method, compiled, monkeypatch):
    """Libraries replace nn.Linear.forward to quantise or to count."""
    model, x, inner = layer(), torch.randn(5, 12), nn.Linear.forward
    if method == "ia3":
        model = peft.get_peft_model(
            nn.Sequential(nn.Linear(12, 9)), peft.IA3Config(target_modules=["0"], feedforward_modules=[])
        )
    report, before = pf.fuse(model, strict=True), model(x)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * inner(self, x))
    got = (torch.compile(model, backend="aot_eager") if compiled else model)(x)
    assert report.calls() == {"fused": 1} | ({} if compiled else {"the forward of nn.Linear has been replaced": 1})
    pf.unfuse(model)
    torch.testing.assert_close(got, model(x))
    assert not torch.allclose(got, before)
    torch._dynamo.reset()


def test_a_layer_with_hooks_on_itself_runs_fused():
    model, seen = layer(), []
    model.base_model.model[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
    report = pf.fuse(model)
    model(torch.randn(5, 12))
    assert report.calls() == {"fused": 1} and seen == [(5, 9)]


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, dict(use_dora=True)], ids=str)
def test_autocast(base, options):
    model = layer(nn.Linear(12, 9, dtype=base), **options)
    x = torch.randn(5, 12, requires_grad=True)
    with torch.autocast(DEVICE, torch.bfloat16):
        theirs = model(x)
        report = pf.fuse(model)
        ours = model(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16 and report.calls() == {"fused": 1}
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    got, want = (torch.autograd.grad(y.float().square().sum(), wanted) for y in (ours, theirs))
    for a, b in zip((ours, *got), (theirs, *want), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0.03 * b.abs().max().item())


def test_a_trained_base_weight_gets_its_gradient():
    grads = []
    for fused in (False, True):
        model = layer()
        model.base_model.model[0].base_layer.requires_grad_(True)
        if fused:
            report = pf.fuse(model)
        torch.manual_seed(0)
        model(torch.randn(5, 12)).square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
    assert report.calls() == {"fused": 1} and len(grads[0]) == 4
    torch.testing.assert_close(*grads)


def test_a_second_derivative_is_refused_by_name():
    model = layer()
    pf.fuse(model)
    x = torch.randn(5, 12, requires_grad=True)
    (g,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_an_injected_model_without_a_peft_model():
    model = zoo.build("llama")
    model.add_adapter(peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    before, report = zoo.logits(model), pf.fuse(model, strict=True)
    zoo.assert_same(zoo.logits(model), before)
    model.disable_adapters()
    assert not torch.allclose(zoo.logits(model), before, atol=1e-2) and report.calls() == {"fused": 2}
