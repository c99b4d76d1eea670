"""The casts of autocast for functions that replace a linear layer."""

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


def autocast_lora(dtype, *parameters):
    """An adapter's parameters as autocast gives them to a layer of this dtype: float32 ones stay."""
    return tuple(t.to(dtype) if t.dtype in (torch.bfloat16, torch.float16) else t for t in parameters)


def autocast_factor(x, factor):
    """A vector that multiplies a layer's inputs or outputs, as eager PyTorch promotes it under autocast.

    It is float32 then if it is of the half-precision type that x is not.
    """
    if factor.dtype == x.dtype or factor.dtype not in (torch.bfloat16, torch.float16) or not _check.autocasts(x.device):
        return factor
    return factor.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(device):
    """A context that casts nothing; PyTorch's own raises for a device that has no autocast, such as meta."""
    if not _check.autocasts(device):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
