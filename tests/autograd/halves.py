"""Half precision, forward and backward: as close to float64 as PyTorch itself, to within a factor of two."""

import torch

from tests.gradients import with_gradients

# Of the activations, and of the adapter if it is another.
HALVES = [(torch.bfloat16, None), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)]


def assert_as_close_as_eager(function, eager, args):
    """function(*args) and eager(*args) give y; y and its gradients in all of args are compared."""
    wide = [t.detach().double().requires_grad_() for t in args]
    truths, theirs, ours = (with_gradients(f, inputs) for f, inputs in ((eager, wide), (eager, args), (function, args)))
    for truth, own, got in zip(truths, theirs, ours, strict=True):
        error, eager_error = (got.double() - truth).abs().max(), (own.double() - truth).abs().max()
        # dY is itself a rounded value, so an ulp here is one of the half-precision type.
        assert got.dtype == own.dtype and error <= 2 * eager_error + torch.finfo(args[0].dtype).eps * truth.abs().max()
