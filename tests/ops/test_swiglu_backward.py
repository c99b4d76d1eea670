import dataclasses

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops.swiglu import swiglu
from pypeft_fast.ops.swiglu_backward import swiglu_backward
from pypeft_fast.testing import Case, assert_agrees, available
from tests.ops.rejections import assert_rejects
from tests.ops.test_swiglu import EDGES

KERNELS = available(OPS["swiglu_backward"])


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, torch.ones(()), ValueError, "dh must have at least 1 dimension"),
        (0, lambda dh: dh.long(), TypeError, "dh has dtype torch.int64"),
        (1, lambda gate: gate[1:], ValueError, r"gate has shape \(5, 10\), expected \(6, 10\): that of dh"),
        (2, lambda up: up[:, :1], ValueError, r"up has shape \(6, 1\), expected \(6, 10\)"),
        (2, lambda up: up.half(), TypeError, "up is torch.float16 but dh is torch.float32"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("swiglu_backward", index, value, error, words)


@pytest.mark.parametrize("kernel", KERNELS)
def test_small_example(kernel):
    """At t = ln 3 the sigmoid is 3/4 and its derivative 3/16."""
    t = torch.tensor([3.0]).log()
    with pf.using(kernel):
        dgate, dup, h = swiglu_backward(torch.tensor([2.0]), t, torch.tensor([8.0]), True)
    torch.testing.assert_close((dgate, dup, h), (16 * (3 / 4 + t * 3 / 16), 2 * t * 3 / 4, 6 * t))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("M,N", [(0, 7), (3, 5), (40, 33)])
def test_h_is_that_of_the_forward_pass_or_empty(kernel, M, N, poisoned):
    dh, gate, up = (torch.randn(M, N) for _ in range(3))
    with pf.using(kernel):
        with_h, without = swiglu_backward(dh, gate, up, True), swiglu_backward(dh, gate, up, False)
        assert torch.equal(with_h[2], swiglu(gate, up)) and without[2].shape == (0,)
    assert torch.equal(with_h[0], without[0]) and torch.equal(with_h[1], without[1])
    assert_agrees("swiglu_backward", kernel, dataclasses.replace(Case(M=M, N=N), options={"need_h": False}))


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gradients_are_those_of_autograd(kernel):
    gate, up, dh = (torch.randn(2, 3, 37, dtype=torch.float64) for _ in range(3))
    leaves = gate.requires_grad_(), up.requires_grad_()
    wanted = torch.autograd.grad(torch.nn.functional.silu(gate) * up, leaves, dh)
    with pf.using(kernel), torch.no_grad():
        got = swiglu_backward(dh.float(), gate.float(), up.float(), False)[:2]
    torch.testing.assert_close(got, tuple(g.float() for g in wanted))


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_expanded_gradient(kernel):
    """The gradient of a sum is one element with strides of 0."""
    gate, up = torch.randn(9, 20), torch.randn(20, 9).t()
    with pf.using(kernel):
        got = swiglu_backward(torch.ones(()).expand(9, 20), gate, up, True)
        torch.testing.assert_close(got, swiglu_backward(torch.ones(9, 20), gate, up.contiguous(), True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_far_from_zero_the_slope_is_one_or_zero(kernel):
    one = torch.ones_like(EDGES)
    with pf.using(kernel):
        dgate, dup, _ = swiglu_backward(one, EDGES, one, False)
    wide = EDGES.double()
    slope = torch.sigmoid(wide) * (1 + wide * torch.sigmoid(-wide))
    torch.testing.assert_close(dgate.double(), slope, rtol=1e-6, atol=1e-36)
    torch.testing.assert_close(dup.double(), torch.nn.functional.silu(wide), rtol=1e-6, atol=1e-36)
