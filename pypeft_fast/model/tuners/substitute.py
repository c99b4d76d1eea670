"""Runs a module with another bias without changing the module, since other threads may run it at the same time."""

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
    """module(*args, **kwargs) with `bias` instead of the bias of the module, or of the base layer of a tuner layer."""
    weight = _frozen_linear_weight(module, args[0]) if len(args) == 1 and not kwargs else None
    if weight is not None:
        return bitfit_linear(args[0], weight, bias)
    return _substitute(module, bias)(*args, **kwargs)


def _frozen_linear_weight(module, x):
    """The weight [N, K] if the module only computes x W^T + b and W is frozen; else None."""
    if isinstance(module, BaseTunerLayer) or why_not_now() is not None:
        return None
    base, weight, _ = frozen_base.read(module, x)
    if not isinstance(weight, torch.Tensor) or why_not_fused(base, of_input(x), (), False)[0] is not None:
        return None
    return None if weight.requires_grad else weight


def why_not(module) -> str | None:
    """Why the module cannot be called with another bias, or None."""
    state = vars(module)
    if "forward" in state and "_hf_hook" not in state and why_not_forward(module) is not None:
        return "has a forward of its own"
    return None


def _substitute(module, bias):
    """A copy of the module that shares everything but the bias. accelerate's hook may load the weights only during the
    call, so for a module with such a hook the bias is set inside the hook."""
    obstacle = why_not(module)
    if obstacle is not None:
        raise ValueError(
            f"BitFit: a {type(module).__name__} {obstacle}; unload the adapter, or delete the module's own forward"
        )
    if "_hf_hook" not in vars(module):
        return _with_bias(module, bias)
    copy = _copy(module)
    copy.forward = functools.partial(_forward_with_hook, module, bias)
    return copy


def _forward_with_hook(module, bias, *args, **kwargs):
    args, kwargs = module._hf_hook.pre_forward(module, *args, **kwargs)
    output = type(module).forward(_with_bias(module, bias), *args, **kwargs)
    return module._hf_hook.post_forward(module, output)


def _copy(module):
    copy = object.__new__(type(module))
    vars(copy).update(vars(module))
    vars(copy).pop("forward", None)  # an instance forward is bound to the original module
    return copy


def _with_bias(module, bias):
    copy = _copy(module)
    if isinstance(module, BaseTunerLayer):
        vars(copy)["_modules"] = {**module._modules, "base_layer": _substitute(module.base_layer, bias)}
        return copy
    like = module._parameters.get("bias")
    like = module.weight if like is None else like
    dtype = like.dtype if like.is_floating_point() and like.dtype.itemsize > 1 else bias.dtype
    vars(copy)["_parameters"] = {**module._parameters, "bias": bias.to(like.device, dtype)}
    return copy
