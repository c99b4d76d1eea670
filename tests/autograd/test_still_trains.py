"""A parameter that is frozen between forward and backward raises instead of losing its gradient silently."""

import pytest
import torch

import pypeft_fast as pf

x, W = torch.randn(5, 16), torch.randn(12, 16)


def adapter():
    return torch.randn(4, 16, requires_grad=True), torch.randn(12, 4, requires_grad=True)


def lora(A, B, magnitude, l):  # noqa: E741
    return pf.lora_linear(x, W, A, B)


def gated(A, B, magnitude, l):  # noqa: E741
    return pf.lora_gated_linear(x, x, W, A, B)


def dora(A, B, magnitude, l):  # noqa: E741
    return pf.dora_linear(x, W, A, B, magnitude)


def ia3(A, B, magnitude, l):  # noqa: E741
    return pf.ia3_linear(x, W, l)


@pytest.mark.parametrize("function,name", [(lora, "lora_B"), (gated, "lora_B"), (dora, "lora_B"), (ia3, "ia3_l")])
def test_switching_off_between_forward_and_backward_raises(function, name):
    A, B = adapter()
    magnitude, l = torch.rand(12).requires_grad_(), torch.rand(12).requires_grad_()  # noqa: E741
    parameters = (A, B, magnitude, l)
    y = function(*parameters)
    for parameter in parameters:  # as switching adapters in PEFT does in our layers
        parameter.requires_grad_(False)
        parameter.frozen_by_switching = True
    with pytest.raises(RuntimeError, match=f"{name} stopped requiring grad between forward and backward"):
        y.sum().backward()
    for parameter in parameters:
        parameter.requires_grad_(True)
    function(*parameters).sum().backward()
    assert (l if function is ia3 else B).grad.any()


def test_set_adapter_between_forward_and_backward_raises():
    from torch import nn

    model = pf.get_peft_model(nn.Sequential(nn.Linear(16, 12)), pf.LoraConfig(target_modules=["0"]))
    model.add_adapter("second", pf.LoraConfig(target_modules=["0"]))
    y = model(x)
    model.set_adapter("second")
    with pytest.raises(RuntimeError, match="call backward before set_adapter"):
        y.sum().backward()
    model(x).sum().backward()
    assert model.base_model.model[0].lora_B["second"].weight.grad.any()


def test_backward_that_loses_no_gradient_does_not_raise():
    """The user has frozen the parameter; only the input needs a gradient; the adapter has been switched on again."""
    from torch import nn

    A, B = adapter()
    inputs = x.clone().requires_grad_()
    y = pf.lora_linear(inputs, W, A, B).sum()
    A.requires_grad_(False)
    B.requires_grad_(False)
    y.backward()
    assert inputs.grad.any() and B.grad is None
    model = pf.get_peft_model(nn.Sequential(nn.Linear(16, 12)), pf.LoraConfig(target_modules=["0"]))
    model.add_adapter("second", pf.LoraConfig(target_modules=["0"]))
    y = model(inputs).sum()
    model.set_adapter("second")
    assert torch.autograd.grad(y, inputs, retain_graph=True)[0].any()
    with pytest.raises(RuntimeError, match="call backward before set_adapter"):
        y.backward(retain_graph=True)
    model.set_adapter("default")
    y.backward()
    assert model.base_model.model[0].lora_B["default"].weight.grad.any()
