"""Half precision, forward and backward: the error to float64 is at most twice the error of PyTorch."""

import torch

from tests.gradients import with_gradients

# (dtype of the activations, dtype of the adapter if it is different).
HALVES = [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)]


def assert_as_close_as_eager(function, eager, args):
    """Compares function(*args) with eager(*args): y, and the gradients with respect to all args."""
    wide = [t.detach().double().requires_grad_() for t in args]
    truths, theirs, ours = (with_gradients(f, inputs) for f, inputs in ((eager, wide), (eager, args), (function, args)))
    for truth, own, got in zip(truths, theirs, ours, strict=True):
        error, eager_error = (got.double() - truth).abs().max(), (own.double() - truth).abs().max()
        # dY is rounded, so one ulp of the half-precision dtype is allowed.
        assert got.dtype == own.dtype and error <= 2 * eager_error + torch.finfo(args[0].dtype).eps * truth.abs().max()
