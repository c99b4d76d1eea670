"""Every function under the transforms of torch.func, compared with its formula: batched, differentiated, and both."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import func

import pypeft_fast as pf
from pypeft_fast.autograd.bitfit import bitfit_linear
from pypeft_fast.autograd.bottleneck import bottleneck
from tests.device import DEVICE

N, K, R = 6, 8, 2
torch.manual_seed(0)
X = torch.randn(3, 4, K, device=DEVICE)
W, A, B, b = (torch.randn(s, device=DEVICE) for s in ((N, K), (R, K), (N, R), (N,)))
UP, BIAS = torch.randn(K, R, device=DEVICE), torch.randn(R, device=DEVICE)


def dora(x, A):
    update = W + 2.0 * B @ A
    return (torch.ones(N, device=DEVICE) / update.detach().norm(dim=1)) * (x @ update.t()) + b


# name: (ours, the formula) of (x, A [2, 8])
FUNCTIONS = {
    "lora_linear": (
        lambda x, A: pf.lora_linear(x, W, A, B, b, scaling=2.0),
        lambda x, A: F.linear(x, W, b) + 2.0 * x @ A.t() @ B.t(),
    ),
    "dora_linear": (lambda x, A: pf.dora_linear(x, W, A, B, torch.ones(N, device=DEVICE), b, scaling=2.0), dora),
    "ia3_linear": (lambda x, A: pf.ia3_linear(x, W, A[0, :N], b), lambda x, A: F.linear(x, W, b) * A[0, :N]),
    "ia3_linear, feedforward": (
        lambda x, A: pf.ia3_linear(x, W, A[1], b, feedforward=True),
        lambda x, A: F.linear(x * A[1], W, b),
    ),
    "lora_gated_linear": (
        lambda x, A: pf.lora_gated_linear(x, x + 1, W, A, B, b),
        lambda x, A: (lambda h: F.linear(h, W, b) + h @ A.t() @ B.t())(F.silu(x) * (x + 1)),
    ),
    "bitfit_linear": (lambda x, A: bitfit_linear(x, W, A[0, :N]), lambda x, A: F.linear(x, W, A[0, :N])),
    "bottleneck": (
        lambda x, A: bottleneck(x, A, BIAS, UP, torch.ones(K, device=DEVICE), activation="gelu"),
        lambda x, A: x + F.gelu(x @ A.t() + BIAS) @ UP.t() + 1,
    ),
}
TRANSFORMS = {
    "vmap": lambda f: func.vmap(lambda x: f(x, A))(X),
    "grad": lambda f: func.grad(lambda A: f(X, A).square().sum())(A),
    "grad of x": lambda f: func.grad(lambda x: f(x, A).square().sum())(X),
    "vmap of grad": lambda f: func.vmap(func.grad(lambda A, x: f(x, A).square().sum()), (None, 0))(A, X),
    "jacrev": lambda f: func.jacrev(lambda A: f(X[0], A))(A),
    "several adapters": lambda f: func.vmap(functools.partial(f, X))(torch.stack((A, 2 * A))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("records", [True, False])
def test_every_transform_agrees_with_the_formula(name, transform, records):
    ours, formula = FUNCTIONS[name]
    with torch.set_grad_enabled(records):
        found = TRANSFORMS[transform](ours)
    torch.testing.assert_close(found, TRANSFORMS[transform](formula), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_backward_through_vmap(name):
    """Autograd outside of vmap computes the gradient of a parameter that is captured by the function."""
    results = []
    for f in FUNCTIONS[name]:
        watched = A.clone().requires_grad_()
        y = func.vmap(lambda x, f=f, watched=watched: f(x, watched))(X)
        results.append(torch.autograd.grad(y.square().sum(), watched)[0])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


# Under a transform the other two consist of PyTorch's operators, which have second derivatives.
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in ("bitfit_linear", "bottleneck")])
def test_second_derivatives_are_refused(name):
    def loss(A):
        return FUNCTIONS[name][0](X[0], A).square().sum()

    with pytest.raises(RuntimeError, match="no second derivatives|no derivative"):
        func.jacrev(func.grad(loss))(A)


def test_a_tensor_that_outlives_its_transform_is_an_ordinary_tensor():
    kept, (x, W, A, B) = [], (torch.randn(s) for s in ((5, 8), (6, 8), (3, 8), (6, 3)))
    torch.func.grad(lambda x: kept.append(x) or x.sum())(x)
    A.requires_grad_()
    found = torch.autograd.grad(pf.lora_linear(kept[0], W, A, B).square().sum(), A)[0]
    expected = torch.autograd.grad((x @ W.t() + x @ A.t() @ B.t()).square().sum(), A)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
