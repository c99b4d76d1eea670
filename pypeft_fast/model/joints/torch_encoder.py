"""Switches off the fast path of nn.TransformerEncoderLayer, which reads weights in eval mode and calls no layer."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...nn.adapter_linear import AdapterLinear


def switch_off_fast_path(model) -> None:
    """Switches off the fast path in every encoder layer, and nested tensors in every encoder, that has an adapter."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _has_adapters(module):
            _set(module, activation_relu_or_gelu=0)
        elif isinstance(module, nn.TransformerEncoder) and _has_adapters(module):
            _set(module, use_nested_tensor=False)


def restore_fast_path(model) -> None:
    """Undoes switch_off_fast_path in the modules where no adapter is left."""
    for module in model.modules():
        if "_before_adapters" in vars(module) and not _has_adapters(module):
            vars(module).update(module._before_adapters)
            del module._before_adapters


def _has_adapters(module) -> bool:
    return any(isinstance(m, (BaseTunerLayer, AdapterLinear)) for m in module.modules())


def _set(module, **values):
    if "_before_adapters" not in vars(module):
        module._before_adapters = {name: vars(module)[name] for name in values if name in vars(module)}
        vars(module).update(values)
