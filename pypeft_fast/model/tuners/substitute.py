"""Runs a module with another bias without changing the module, which other threads may be running."""

import functools

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from ...autograd.bitfit import bitfit_linear
from ..layers import frozen_base
from ..layers.facts import of_input
from ..layers.part import why_not as why_not_fused
from ..layers.rules import why_not_now
from ..layers.swapped_class import why_not_forward


def call_with_bias(module, bias, *args, **kwargs):
    """module(*args, **kwargs) with `bias` in the place of its own, or of that of the module inside a tuner layer."""
    weight = _weight_alone(module, args[0]) if len(args) == 1 and not kwargs else None
    if weight is not None:
        return bitfit_linear(args[0], weight, bias)
    return _stand_in(module, bias)(*args, **kwargs)


def _weight_alone(module, x):
    """The weight [N, K], if the module does nothing but x W^T + b and W is frozen; else None."""
    if isinstance(module, BaseTunerLayer) or why_not_now() is not None:
        return None
    base, weight, _ = frozen_base.read(module, x)
    if not isinstance(weight, torch.Tensor) or why_not_fused(base, of_input(x), (), False)[0] is not None:
        return None
    return None if weight.requires_grad else weight


def why_not(module) -> str | None:
    """Why calls of the module cannot be given another bias, if they cannot."""
    state = vars(module)
    if "forward" in state and "_hf_hook" not in state and why_not_forward(module) is not None:
        return "has a forward of its own"
    return None


def _stand_in(module, bias):
    """A module that shares everything with this one but the bias. accelerate's hook may bring the weights only when the
    module is called, so there the bias is put in within the hook."""
    obstacle = why_not(module)
    if obstacle is not None:
        raise ValueError(f"BitFit: a {type(module).__name__} {obstacle}; unload the adapter, or take that forward away")
    if "_hf_hook" not in vars(module):
        return _with_bias(module, bias)
    copy = _copy(module)
    copy.forward = functools.partial(_hooked, module, bias)
    return copy


def _hooked(module, bias, *args, **kwargs):
    args, kwargs = module._hf_hook.pre_forward(module, *args, **kwargs)
    output = type(module).forward(_with_bias(module, bias), *args, **kwargs)
    return module._hf_hook.post_forward(module, output)


def _copy(module):
    copy = object.__new__(type(module))
    vars(copy).update(vars(module))
    vars(copy).pop("forward", None)  # it is bound to the module itself
    return copy


def _with_bias(module, bias):
    copy = _copy(module)
    if isinstance(module, BaseTunerLayer):
        vars(copy)["_modules"] = {**module._modules, "base_layer": _stand_in(module.base_layer, bias)}
        return copy
    like = module._parameters.get("bias")
    like = module.weight if like is None else like
    dtype = like.dtype if like.is_floating_point() and like.dtype.itemsize > 1 else bias.dtype
    vars(copy)["_parameters"] = {**module._parameters, "bias": bias.to(like.device, dtype)}
    return copy
