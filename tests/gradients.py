"""The value of a function together with its gradients, for tests that compare two ways to compute them."""

import torch


def with_gradients(function, args, wanted=None):
    """(y, gradients of the sum of y² with respect to `wanted`), y = function(*args); `wanted` is `args` by default."""
    y = function(*args)
    return y, *torch.autograd.grad(y.double().square().sum(), args if wanted is None else wanted)


def model_with_gradients(model, x):
    """(y, gradients with respect to x and to every parameter that requires grad), y = model(x)."""
    return with_gradients(model, [x], [x, *(p for p in model.parameters() if p.requires_grad)])
