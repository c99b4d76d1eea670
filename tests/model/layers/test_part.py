"""A method is one class, which a fused layer composes; its reasons against fusing are used in all places."""

import copy
import pickle

import peft
import pytest
import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraVariant
from torch import nn

import pypeft_fast as pf
from pypeft_fast.model.layers import facts, peft_lora, rules
from pypeft_fast.model.layers.fused_layer import FusedLayer
from pypeft_fast.model.layers.lora import LoRA
from tests.gradients import model_with_gradients


class ShiftedVariant(LoraVariant):
    """A toy method in PEFT: LoRA on 2 * x with a bias of its own, and a factor on the output."""

    @staticmethod
    def forward(module, active_adapter, x, result, **kwargs):
        A, B = module.lora_A[active_adapter], module.lora_B[active_adapter]
        y = nn.functional.linear(2 * x, module.base_layer.weight, module.shift)
        return (y + B(A(2 * x)) * module.scaling[active_adapter]) * module.gain


class Shifted(LoRA):
    """The toy method as a part: inputs, bias and outputs, and the inherited update."""

    __slots__ = ("bias", "inputs", "outputs")

    @classmethod
    def read(cls, layer, name):
        found, part = super().read(layer, name)
        part.inputs, part.bias, part.outputs = 2 * torch.ones(12), layer.shift, layer.gain
        return (found, facts.of_tensor(layer.gain)), part

    @staticmethod
    def why_not(found, is_loaded=True):
        return LoRA.why_not(found[0], is_loaded) or rules.why_not_tensor(found[1], "gain", is_loaded)

    @staticmethod
    def why_not_beside(found, x):
        return LoRA.why_not_beside(found[0], x)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setitem(peft_lora.VARIANTS, ShiftedVariant, Shifted)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
    model = peft.get_peft_model(nn.Sequential(nn.Linear(12, 9)), config).eval()
    layer = model.base_model.model[0]
    layer.lora_variant["default"] = ShiftedVariant()
    layer.shift, layer.gain = nn.Parameter(torch.randn(9)), nn.Parameter(torch.full((9,), 0.5))
    return model, layer, torch.randn(5, 12, requires_grad=True)


def test_a_toy_method_composes_with_the_layer(toy):
    model, layer, x = toy
    expected, report = model_with_gradients(model, x), pf.fuse(model, strict=True)
    assert len(expected) == 6  # y and the gradients of x, lora_A, lora_B, shift and gain
    with pf.recording() as ran:
        got = model_with_gradients(model, x)
    torch.testing.assert_close(got, expected)
    assert report.calls() == {"fused": 1} and "lora_forward" in [op for op, _ in ran]
    del peft_lora.VARIANTS[ShiftedVariant]  # the method is no longer registered
    model(x)
    assert report.calls() == {"fused": 1, "the adapter is of a variant, ShiftedVariant": 1}
    pf.unfuse(model)
    assert type(layer) is LoraLinear and pf.fuse(model).left


def test_a_reason_of_a_toy_method_is_seen_by_the_call_the_counter_and_the_report(toy):
    model, layer, x = toy
    report = pf.fuse(model, strict=True)
    for _ in range(2):
        model(x)
    layer.gain.data = layer.gain.data.to(torch.float8_e4m3fn).float().to(torch.float8_e4m3fn)
    with pytest.raises(RuntimeError):  # PEFT cannot either
        model(x)
    assert report.calls() == {"fused": 2, "gain is torch.float8_e4m3fn": 1}
    pf.unfuse(model)
    assert list(pf.fuse(model).left.values()) == ["gain is torch.float8_e4m3fn"]


def lora(**options):
    config = peft.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False, **options)
    return peft.get_peft_model(nn.Sequential(nn.Linear(12, 9)), config).eval()


@pytest.mark.parametrize("options", [{}, dict(use_dora=True)], ids=str)
def test_one_more_rule_is_followed_by_calls_merging_rows_and_the_report(options, monkeypatch):
    """A new rule about lora_A in one place is used by forward, as_lora, rows, merging and the report."""
    inner = LoRA.why_not

    def why_not(found, is_loaded=True):
        return "r is odd" if found[0][1][-1][0] % 2 else inner(found, is_loaded)

    monkeypatch.setattr(LoRA, "why_not", staticmethod(why_not))
    even, odd = lora(**options), lora(**options)
    odd.base_model.model[0].update_layer("default", 3, lora_alpha=8, config=odd.peft_config["default"])
    assert pf.fuse(even).fused and list(pf.fuse(odd).left.values()) == ["r is odd"]
    layer, x = even.base_model.model[0], torch.randn(5, 12)
    report = pf.fuse(even)
    even(x)
    layer.update_layer("default", 3, lora_alpha=8, config=even.peft_config["default"])
    even(x)
    assert report.calls() == {"fused": 1, "r is odd": 1}
    assert layer.as_lora(x) is None and layer.merged_weight(layer.base_layer.weight, ["default"]) is None
    if not options:
        layer(x, adapter_names=["default"] * 5)
        assert report.calls() == {"fused": 1, "r is odd": 2}


def test_the_reason_is_computed_again_only_after_the_facts_have_changed(monkeypatch):
    """Each change is noticed, and its reversal; copies and unpickled layers compute the reason again."""
    from pypeft_fast.model.layers import fused_layer

    asked, inner = [], fused_layer.why_not
    monkeypatch.setattr(fused_layer, "why_not", lambda *found: asked.append(0) or inner(*found))
    model, x = lora(lora_dropout=0.1), torch.randn(5, 12)
    report, layer = pf.fuse(model, strict=True), model.base_model.model[0]
    model(x), model(torch.randn(7, 12)), model(x)
    assert len(asked) == 1  # the number of rows does not matter
    handle = layer.lora_A["default"].register_forward_hook(lambda *args: None)
    model(x), handle.remove(), model(x)
    assert len(asked) == 3 and report.calls() == {"fused": 4, "lora_A has hooks or a forward of its own": 1}
    layer.lora_dropout["default"].p = 1.0
    model.train()(x)
    assert len(asked) == 4 and report.calls()["lora_dropout is in place or drops all: p=1.0"] == 1
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(again, FusedLayer) and again._call_cache.last[0] is None
        assert torch.equal(again.eval()(x), layer.eval()(x))
