"""bitfit_linear: the gradients are those of autograd, and no activation is saved."""

import pytest
import torch
import torch.nn.functional as F

import pypeft_fast as pf
from pypeft_fast.autograd.bitfit import bitfit_linear
from tests.autograd.saving import keeping
from tests.device import DEVICE


@pytest.mark.parametrize("need_x", [True, False])
def test_values_and_gradients(need_x):
    x, weight = torch.randn(2, 5, 7, requires_grad=need_x), torch.randn(4, 7)
    bias = torch.randn(4, requires_grad=True)
    expected = F.linear(x, weight, bias)
    y = bitfit_linear(x, weight, bias)
    torch.testing.assert_close(y, expected)
    dY = torch.randn_like(y)
    inputs = [bias, *([x] if need_x else [])]
    for a, b in zip(torch.autograd.grad(y, inputs, dY), torch.autograd.grad(expected, inputs, dY), strict=True):
        torch.testing.assert_close(a, b)
        assert a.any()


def test_only_the_weight_is_saved():
    x, weight = torch.randn(5, 7, requires_grad=True), torch.randn(4, 7)
    with keeping() as saved:
        bitfit_linear(x, weight, torch.zeros(4, requires_grad=True))
        assert len(saved) == 1 and saved[0].data_ptr() == weight.data_ptr()
        bitfit_linear(x.detach(), weight, torch.zeros(4, requires_grad=True))
    assert len(saved) == 1


def test_half_precision_and_autocast():
    x, weight = torch.randn(301, 8).bfloat16(), torch.randn(4, 8).bfloat16()  # 301 is not a bfloat16
    bias = torch.zeros(4, requires_grad=True)
    y = bitfit_linear(x, weight, bias)
    y.backward(torch.ones_like(y))
    assert y.dtype == torch.bfloat16 and bias.grad.dtype == torch.float32 and bias.grad.eq(301).all()
    with torch.autocast(DEVICE, torch.bfloat16):
        assert bitfit_linear(x.float(), weight.float(), bias).dtype == torch.bfloat16


def test_bad_arguments():
    x, weight, bias = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)
    with pytest.raises(ValueError, match=r"bias has shape \(3,\), expected \(4,\)"):
        bitfit_linear(x, weight, torch.zeros(3))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\), expected \(.., 3\): weight of shape \(4, 3\) takes 3"):
        bitfit_linear(torch.zeros(2, 5), weight, bias)
    with pytest.raises(ValueError, match=r"x has shape \(\), expected \(.., 3\)"):
        bitfit_linear(torch.zeros(()), weight, bias)
    with pytest.raises(ValueError, match="weight must have 2 dimensions"):
        bitfit_linear(x, torch.zeros(3), bias)
    with pytest.raises(ValueError, match="weight requires grad"):
        bitfit_linear(x, weight.clone().requires_grad_(), bias)
    with pytest.raises(TypeError, match="weight is torch.float64, x is torch.float32"):
        bitfit_linear(x, weight.double(), bias)


def test_the_layer_shares_the_weight_and_trains_a_bias_of_its_own():
    linear = torch.nn.Linear(3, 4)
    before = linear.bias.detach().clone()
    layer = pf.nn.BitFitLinear.from_linear(linear)
    assert layer.weight is linear.weight and isinstance(layer, torch.nn.Linear)
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["bias"]
    x = torch.randn(5, 3)
    torch.testing.assert_close(layer(x), linear(x))
    layer.bias.data += 1
    assert torch.equal(linear.bias, before)
    bare = torch.nn.Linear(3, 4, bias=False)
    with pytest.raises(ValueError, match="has no bias to train; add_missing=True"):
        pf.nn.BitFitLinear.from_linear(bare)
    torch.testing.assert_close(pf.nn.BitFitLinear.from_linear(bare, add_missing=True)(x), bare(x))


def test_a_new_layer_computes_what_linear_does_and_trains_the_bias_alone():
    layer, x = pf.nn.BitFitLinear(3, 4), torch.randn(5, 3)
    torch.nn.init.normal_(layer.bias)
    y = layer(x)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias))
    y.sum().backward()
    assert layer.weight.grad is None and torch.equal(layer.bias.grad, torch.full((4,), 5.0))


@pytest.mark.parametrize("K,N", [(0, 6), (6, 0)])
def test_empty_features(K, N):
    x, bias = torch.randn(5, K, requires_grad=True), torch.randn(N, requires_grad=True)
    y = bitfit_linear(x, torch.randn(N, K), bias)
    assert torch.equal(y, bias.expand(5, N))
    dX, db = torch.autograd.grad(y.sum(), (x, bias))
    assert torch.equal(dX, torch.zeros(5, K)) and torch.equal(db, torch.full((N,), 5.0))
