"""PEFT's lora.Linear with its forward on the fused ops, LoRA and DoRA. Imports PEFT: load it only where PEFT is.

The class of an existing layer is set to this one and back; parameters, names and state dict stay what they are, and
everything but forward is inherited. Whatever the ops cannot do runs in PEFT's own forward, and is counted.
"""

from collections import Counter

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import dispatch_default
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..autograd.dora import dora_linear
from ..autograd.dora_norm import NormCache
from ..autograd.lora import lora_linear
from . import can_fuse
from .targets import is_conv1d


class FusedLinear(LoraLinear):
    """PEFT looks for "Linear" in the names of the classes of tuner layers, so this one has it too."""

    def forward(self, x, *args, **kwargs):
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or not active or kwargs.get("adapter_names") is not None:
            return super().forward(x, *args, **kwargs)  # nothing to fuse, or PEFT's loop over the rows' adapters
        reason = "the call has further arguments" if args or any(v is not None for v in kwargs.values()) else None
        reason = reason or why_not_call(self, x, active)
        if not torch.compiler.is_compiling():
            self._fused_calls[reason or can_fuse.FUSED] += 1
        if reason is not None:
            return super().forward(x, *args, **kwargs)
        return run(self, x, active)

    def as_lora(self, x):
        """What lora_linear needs besides an input like x, if one call of it is all that forward does; else None.

        A call counted as fused: whoever asks makes it.
        """
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] in self.lora_variant:
            return None
        if why_not_call(self, x, active) is not None:
            return None
        if not torch.compiler.is_compiling():
            self._fused_calls[can_fuse.FUSED] += 1
        return lora_arguments(self, active)

    def merge(self, *args, **kwargs):
        self._fused_norms.clear()  # PEFT adds to the base weight through .data, which no version counter shows
        return super().merge(*args, **kwargs)

    def unmerge(self):
        self._fused_norms.clear()
        return super().unmerge()

    def train(self, mode=True):
        self._fused_norms.clear()
        return super().train(mode)


def attach(layer):
    layer.__class__ = FusedLinear
    layer._fused_calls = Counter()
    layer._fused_norms: dict[str, NormCache] = {}


def detach(layer):
    layer.__class__ = LoraLinear
    del layer._fused_calls, layer._fused_norms


def why_not_layer(layer) -> str | None:
    """Why none of the layer's adapters can be fused, whatever the input; None if one can."""
    reason = can_fuse.why_not_base(layer.base_layer)
    if reason is not None or not layer.lora_A:
        return reason
    reasons = [why_not_adapter(layer, name) for name in layer.lora_A]
    return None if None in reasons else reasons[0]


def why_not_adapter(layer, name) -> str | None:
    variant = layer.lora_variant.get(name)
    if variant is not None and type(variant) is not DoraLinearVariant:
        return f"the adapter is of a variant, {type(variant).__name__}"
    lora_A, lora_B = layer.lora_A[name], layer.lora_B[name]
    reason = (
        can_fuse.why_not_submodule(lora_A, "lora_A", (nn.Linear,))
        or can_fuse.why_not_submodule(lora_B, "lora_B", (nn.Linear,))
        or can_fuse.why_not_parameter(lora_A.weight, "lora_A")
        or can_fuse.why_not_parameter(lora_B.weight, "lora_B")
        or can_fuse.why_not_dropout(layer.lora_dropout[name])
    )
    if reason is None and (lora_A.bias is not None or lora_B.bias is not None):
        reason = "lora_bias=True"
    if reason is None and lora_A.weight.shape[0] != lora_B.weight.shape[1:].numel():
        reason = "lora_A and lora_B are partitioned"
    if reason is None and variant is not None:
        magnitude = layer.lora_magnitude_vector[name]
        reason = can_fuse.why_not_parameter(magnitude.weight, "lora_magnitude_vector")
        if reason is None and can_fuse.hooked(magnitude):
            reason = "lora_magnitude_vector has hooks"
        if reason is None and isinstance(layer.scaling[name], torch.Tensor):
            reason = "DoRA with a scaling that is a tensor"
    return reason


def why_not_call(layer, x, active) -> str | None:
    """Why this call runs in PEFT's forward, or None."""
    base = layer.base_layer
    reason = can_fuse.why_not_base(base) or can_fuse.why_not_input(x, base, layer.in_features)
    if reason is not None:
        return reason
    dtype = can_fuse.computing_dtype(x)
    for name in active:
        reason = why_not_adapter(layer, name) or _why_not_beside(layer, name, x, dtype)
        if reason is not None:
            return reason
    if len(active) > 1:
        if any(name in layer.lora_variant for name in active):
            return "several active adapters of which one is DoRA"
        if any(_dropout_p(layer, name) > 0 for name in active):
            return "several active adapters with dropout, each with a mask of its own"
    return None


def _why_not_beside(layer, name, x, dtype) -> str | None:
    A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    reason = can_fuse.why_not_dtype(dtype, A.dtype, "lora_A") or can_fuse.why_not_dtype(dtype, B.dtype, "lora_B")
    if reason is None and name in layer.lora_variant:
        magnitude = layer.lora_magnitude_vector[name].weight
        reason = can_fuse.why_not_dtype(dtype, magnitude.dtype, "lora_magnitude_vector")
    if reason is None and (A.device != x.device or B.device != x.device):
        reason = "the adapter is on another device"
    if reason is None and not layer.cast_input_dtype_enabled and x.dtype != A.dtype:
        reason = "casting of the input is switched off"
    return reason


def _dropout_p(layer, name) -> float:
    """The probability that applies now: PEFT's dropout is a module with a training mode of its own."""
    dropout = layer.lora_dropout[name]
    return dropout.p if type(dropout) is nn.Dropout and dropout.training else 0.0


def run(layer, x, active):
    name = active[0]
    arguments = lora_arguments(layer, active)
    if name not in layer.lora_variant:
        return lora_linear(x, **arguments)
    if not layer.training:
        arguments["dropout_p"] = 0.0
    if name not in layer._fused_norms:
        layer._fused_norms[name] = NormCache(keep_norm=False)
    magnitude, cache = layer.lora_magnitude_vector[name].weight, layer._fused_norms[name]
    return dora_linear(x, magnitude=magnitude, norm_cache=cache, **arguments)


def lora_arguments(layer, active):
    """What lora_linear takes besides x."""
    base, name = layer.base_layer, active[0]
    weight = base.weight.t() if is_conv1d(base) else base.weight
    A, B, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    if len(active) > 1:  # their updates add up: one adapter of all their ranks
        A = torch.cat([layer.lora_A[n].weight for n in active])
        B = torch.cat([_scaled(layer.lora_B[n].weight, layer.scaling[n]) for n in active], dim=1)
        scaling = 1.0
    elif isinstance(scaling, torch.Tensor):  # after prepare_model_for_compiled_hotswap
        B, scaling = _scaled(B, scaling), 1.0
    p = _dropout_p(layer, name)
    return dict(weight=weight, lora_A=A, lora_B=B, bias=base.bias, scaling=scaling, dropout_p=p)


def _scaled(lora_B, scaling):
    """scaling * B, in float32 for a half-precision B: not rounded before it is used."""
    return lora_B.to(torch.promote_types(lora_B.dtype, torch.float32)) * scaling


def _build(target, adapter_name, config, parameter_name=None, **kwargs):
    """PEFT's own layer for this target, fused; None, on which PEFT tries its other kinds, where it cannot be."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if parameter_name is not None or can_fuse.why_not_base(base) is not None:
        return None
    layer = dispatch_default(target, adapter_name, config=config, **kwargs)
    if type(layer) is LoraLinear and why_not_layer(layer) is None:
        attach(layer)
    return layer


FACTORY = {nn.Linear: _build, Conv1D: _build}  # what PEFT calls as a class may be a function
