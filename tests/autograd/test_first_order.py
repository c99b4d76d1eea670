"""Every function: its output may be changed in place, saved tensors are unpacked once, second derivatives raise."""

import contextlib
from collections import Counter

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from pypeft_fast.autograd.bitfit import bitfit_linear
from pypeft_fast.autograd.bottleneck import bottleneck

K, N, R = 6, 5, 2


def leaves():
    torch.manual_seed(0)
    A, B, weight, bias = torch.randn(R, K), torch.randn(N, R), torch.randn(N, K), torch.randn(N)
    return A.requires_grad_(), B.requires_grad_(), weight, bias


def functions():
    """{name: a function of x [.., K]}; every function has parameters that require grad."""
    A, B, weight, bias = leaves()
    l, magnitude = torch.rand(N).requires_grad_(), torch.rand(N).requires_grad_()  # noqa: E741
    trained, inputs, zeros = bias.clone().requires_grad_(), torch.rand(K).requires_grad_(), torch.zeros(K)
    d = torch.ones(R)
    return {
        "lora": lambda x: pf.lora_linear(x, weight, A, B, bias),
        "dora": lambda x: pf.dora_linear(x, weight, A, B, magnitude, bias),
        "ia3": lambda x: pf.ia3_linear(x, weight, l, bias),
        "gated": lambda x: pf.lora_gated_linear(x, x + 1, weight, A, B, bias),
        "ia3 feedforward": lambda x: pf.ia3_linear(x, weight, inputs, bias, feedforward=True),
        "bitfit": lambda x: bitfit_linear(x, weight, trained),
        "bottleneck": lambda x: bottleneck(
            x, A, d, B, trained, residual=x[..., :N], norm_weight=inputs, norm_bias=zeros
        ),
    }


NAMES = list(functions())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kernel", [None, "blas"])
@pytest.mark.parametrize("shape", [(K,), (4, K), (2, 3, K)], ids=str)
def test_an_output_may_be_changed_in_place(name, kernel, shape):
    function, grads = functions()[name], []
    for act in (torch.relu_, torch.relu):
        x = torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape).requires_grad_()
        with pf.using(kernel) if kernel else contextlib.nullcontext():
            act(function(x)).sum().backward()
        grads.append(x.grad)
    assert torch.equal(*grads) and grads[0].any()
    with torch.no_grad():
        y = function(torch.ones(shape))
    y += torch.ones(N, requires_grad=True)
    assert y.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_every_way_to_a_second_derivative_raises(name):
    function, x = functions()[name], torch.randn(3, K, requires_grad=True)
    (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    refusal = pytest.raises(RuntimeError, match="second derivatives")
    with refusal:
        torch.autograd.grad(first.square().sum(), x, allow_unused=True)
    (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    with refusal:  # together with another loss
        (function(x).square().mean() + first.square().sum()).backward()
    with refusal:
        torch.autograd.functional.hessian(lambda x: function(x).square().sum(), x.detach())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("create_graph", [False, True])
def test_what_is_saved_is_unpacked_once(name, create_graph):
    packed, unpacked = [], Counter()

    def pack(tensor):
        packed.append(tensor)
        return len(packed) - 1

    def unpack(index):
        unpacked[index] += 1
        return packed[index]

    function, x = functions()[name], torch.randn(3, K, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        y = function(x)
    assert packed and not unpacked
    torch.autograd.grad(y.sum(), x, create_graph=create_graph)
    assert unpacked and set(unpacked.values()) == {1}


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_with_a_graph_of_the_gradient(name):
    """create_graph=True alone is allowed, as for a penalty on gradients; a second derivative raises."""
    function, x = functions()[name], torch.randn(3, K, requires_grad=True)
    expected = torch.autograd.grad(function(x).square().sum(), x)
    got = torch.autograd.grad(checkpoint(function, x, use_reentrant=False).square().sum(), x, create_graph=True)
    assert torch.equal(got[0], expected[0]) and got[0].any()
    with pytest.raises(RuntimeError, match="second derivatives"):
        torch.autograd.grad(got[0].square().sum(), x)
