"""The facts of modules, tensors and inputs as plain tuples: the only input of the rules about a call.

A layer's facts are read at every call, because hooks, `.data`, dtypes, parameters and modes may change at any time. The
rules (rules.py, frozen_base.py, and each method's own rules) depend on these tuples alone, so a layer can cache the
rules' answer while the facts stay equal. In decoding, reading the facts takes much of a small layer's time, so
attributes are read from the module's dictionaries and not through the Python code of nn.Module.__getattr__.
"""

import torch
from torch import nn
from torch._C import _is_any_autocast_enabled

from ...frozen.modules import is_plain
from ...ops import _check
from .swapped_class import has_own_forward

Parameter, Tensor, Dropout, Linear = nn.Parameter, torch.Tensor, nn.Dropout, nn.Linear
_LINEAR = nn.Linear, False  # what of_module returns for one without hooks


def of_module(module):
    """(type, whether calling the module does more than its class's forward)"""
    state = module.__dict__
    hooks = (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        and has_own_forward(module)
    )
    return type(module), True if hooks else False


def of_dropout(module):
    """(facts of the module, p, inplace, whether dropout is in training mode); p = 0 for another module."""
    if type(module) is Dropout:
        return of_module(module), module.p, module.inplace, module.training
    return of_module(module), 0.0, False, False


def of_linear(module):
    """((facts of the module, of the weight, of the bias or None), weight, bias) of a linear layer.

    ((facts of the module,), None, None) of any other module. Most facts of a call are read here, so of_module,
    tensor_of and of_tensor are inlined.
    """
    kind, state = type(module), module.__dict__
    hooked = (
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
        and has_own_forward(module)
    )
    if kind is Linear and not hooked:
        of_module = _LINEAR
    else:
        of_module = kind, True if hooked else False
        if kind is not Linear and not is_plain(module):
            return (of_module,), None, None
    parameters = state["_parameters"]
    weight = parameters["weight"] if "weight" in parameters else module.weight
    bias = parameters["bias"] if "bias" in parameters else module.bias
    kind = type(weight)
    if kind is Parameter or kind is Tensor:
        of_weight = kind, weight.dtype, weight.layout, weight.device, weight.shape
    else:
        of_weight = (kind,)
    return (of_module, of_weight, None if bias is None else of_tensor(bias)), weight, bias


def tensor_of(module, name):
    """A parameter of the module, or the plain tensor that FSDP or pruning has put in the parameter's place."""
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def of_tensor(tensor):
    """(type, dtype, layout, device, shape) of a torch.Tensor or nn.Parameter; (type,) of a subclass."""
    kind = type(tensor)
    if kind is not Parameter and kind is not Tensor:
        return (kind,)
    return kind, tensor.dtype, tensor.layout, tensor.device, tensor.shape


def of_input(x):
    """(type, dtype, layout, device, dim, size of the last dimension, autocast's dtype); (type,) of a subclass.

    dim is None for a nested tensor, the size is None without dimensions, the dtype is None without autocast.
    """
    kind = type(x)
    if kind is not Tensor and kind is not Parameter:
        return (kind,)
    device, shape = x.device, None if x.is_nested else x.shape
    cast = autocast_dtype(device) if _is_any_autocast_enabled() else None
    if not shape:
        return kind, x.dtype, x.layout, device, None if shape is None else 0, None, cast
    return kind, x.dtype, x.layout, device, len(shape), shape[-1], cast


def autocast_dtype(device) -> torch.dtype | None:
    """The dtype that autocast casts to on this device, or None if autocast is not active."""
    return torch.get_autocast_dtype(device.type) if _check.autocasts(device) else None
