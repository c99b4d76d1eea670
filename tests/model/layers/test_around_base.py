"""The LoRA update is fused around a frozen layer whose weight cannot be read."""

import copy
import pickle

import peft
import pytest
import torch
from peft.tuners.lora.gptq import GPTQLoraLinear
from torch import nn

import pypeft_fast as pf
from pypeft_fast.autograd.lora_update import lora_update
from pypeft_fast.model.layers.fused_layer import AROUND
from tests.gradients import model_with_gradients


class Opaque(nn.Linear):
    """A layer of another library, with its own product."""

    def forward(self, x):
        return super().forward(x) * 1.0


class WithoutGradient(nn.Linear):
    """A layer whose kernel is for inference: the gradient of the input is lost."""

    def forward(self, x):
        return super().forward(x.detach())


def model_of(base, **options):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], init_lora_weights=False, **options)
    return peft.get_peft_model(nn.Sequential(base), config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_peft_s(dtype):
    model = model_of(Opaque(24, 16, dtype=dtype))
    x = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
    expected, report = model_with_gradients(model, x), pf.fuse(model, strict=True)
    with pf.recording() as ran:
        got = model_with_gradients(model, x)
    assert {"lora_shrink", "lora_ds_db", "lora_da", "lora_dx"} == {op for op, _ in ran}
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * b.abs().max().item())
    assert report.calls() == {AROUND + "the base layer is a Opaque": 1}


def test_with_dropout_the_gradients_are_those_of_the_mask_that_was_drawn():
    torch.manual_seed(0)
    base, x = torch.randn(6, 16, requires_grad=True), torch.randn(6, 24, requires_grad=True)
    A, B = torch.randn(4, 24, requires_grad=True), torch.randn(16, 4, requires_grad=True)
    torch.manual_seed(1)
    y = lora_update(base, x, A, B, scaling=2.0, dropout_p=0.5)
    torch.manual_seed(1)
    weight = torch.zeros(16, 24)
    same = base + pf.lora_linear(x, weight, A, B, scaling=2.0, dropout_p=0.5)
    torch.testing.assert_close(y, same)
    assert not torch.allclose(y, lora_update(base, x, A, B, scaling=2.0))
    dY = torch.randn_like(y)
    got, want = (torch.autograd.grad(out, [base, x, A, B], dY) for out in (y, same))
    torch.testing.assert_close(got, want)


def test_hooks_of_the_frozen_layer_run_and_its_output_is_not_changed():
    model, outputs = model_of(Opaque(24, 16)), []
    model.base_model.model[0].base_layer.register_forward_hook(lambda m, a, out: outputs.append((out, out.clone())))
    pf.fuse(model)
    y = model(torch.randn(5, 24))
    ((out, copied),) = outputs
    assert torch.equal(out, copied) and not torch.equal(out, y)


def test_several_adapters_add_up():
    model, x = model_of(Opaque(24, 16)), torch.randn(5, 24)
    model.add_adapter("b", peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "b"])
    expected, report = model(x), pf.fuse(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert report.calls() == {AROUND + "the base layer is a Opaque": 1}


def test_a_layer_that_loses_the_gradient_of_its_input_is_an_error():
    model = model_of(WithoutGradient(24, 16))
    pf.fuse(model)
    model(torch.randn(5, 24)).sum().backward()
    with pytest.raises(RuntimeError, match="a WithoutGradient, has returned a product without a gradient"):
        model(torch.randn(5, 24, requires_grad=True))


def test_methods_that_read_the_weight_run_in_peft():
    dora = model_of(Opaque(24, 16), use_dora=True)
    assert list(pf.fuse(dora).left.values()) == ["the base layer is a Opaque"]
    model, x = model_of(Opaque(24, 16)).eval(), torch.randn(5, 24)
    expected, report = model(x, adapter_names=["default"] * 5), pf.fuse(model)
    assert torch.equal(model(x, adapter_names=["default"] * 5), expected)
    assert report.calls() == {"the base layer is a Opaque": 1}


def test_layers_of_other_libraries_are_fused_copied_and_pickled():
    layer = GPTQLoraLinear(Opaque(24, 16), "default", config=peft.LoraConfig(r=4, init_lora_weights=False), r=4)
    model, x = nn.Sequential(layer), torch.randn(5, 24)
    expected, report = model(x), pf.fuse(model, strict=True)
    for again in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(again(x), expected, rtol=1e-5, atol=1e-5)
        assert type(again[0]).__name__ == "FusedGPTQLoraLinear" and isinstance(again[0], GPTQLoraLinear)
    assert report.calls() == {AROUND + "the base layer is a Opaque": 1}
    assert pf.unfuse(model) == 1 and type(layer) is GPTQLoraLinear


@pytest.mark.filterwarnings("ignore")
def test_torch_compile_traces_the_call():
    model, x = model_of(Opaque(24, 16)), torch.randn(5, 24, requires_grad=True)
    expected = model_with_gradients(model, x)
    pf.fuse(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(model_with_gradients(compiled, x), expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()


BAD = {
    "base is torch.float64|x is torch.float32": lambda b, x, A, B: (b.double(), x, A, B),
    "lora_B has shape": lambda b, x, A, B: (b, x, A, B[:, :2]),
    "base has shape": lambda b, x, A, B: (b[:, :3], x, A, B),
    "lora_A": lambda b, x, A, B: (b, x, A[:, :3], B),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_named(message):
    good = torch.randn(5, 16), torch.randn(5, 24), torch.randn(4, 24), torch.randn(16, 4)
    with pytest.raises((TypeError, ValueError), match=message):
        lora_update(*BAD[message](*good))
    with pytest.raises(ValueError, match="dropout p=1.5"):
        lora_update(*good, dropout_p=1.5)
