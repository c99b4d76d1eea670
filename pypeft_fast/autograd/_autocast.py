"""Autocast around a function that stands for a linear layer."""

import torch


def autocast_as_linear(x, *parameters):
    """x and the parameters (tensors or None) as autocast would give them to linear, and unchanged outside of it.

    Every floating tensor but float64 takes the autocast dtype of x's device.
    """
    device_type, tensors = x.device.type, (x, *parameters)
    if not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)
