"""Autocast around a function that stands for a linear layer."""

import contextlib

import torch

from ..ops import _check


def autocast_as_linear(x, *parameters):
    """x and the parameters (tensors or None) as autocast would give them to linear, and unchanged outside of it.

    Every floating tensor but float64 takes the autocast dtype of x's device.
    """
    tensors = x, *parameters
    if not _check.autocasts(x.device):
        return tensors
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)


def without_autocast(device):
    """A context that casts nothing; PyTorch's own raises for a device that has no autocast, such as meta."""
    if not _check.autocasts(device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
