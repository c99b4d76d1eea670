"""PEFT's lora.Linear with its forward on the fused ops, LoRA and DoRA.

The class of an existing layer is set to this one and back; parameters, names and state dict stay what they are, and
everything but forward and merging is inherited. Whatever the ops cannot do runs in PEFT's own forward, and is counted.
"""

from collections import Counter

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import dispatch_default
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...autograd.dora import dora_linear
from ...autograd.dora_norm import row_scale
from ...autograd.lora import lora_linear, lora_linear_unchecked
from ...frozen.modules import is_conv1d
from ...nn.merge import lora_delta
from ..joints import rows as rows_of_batch
from ..joints.mixed_rows import mixed_rows_linear
from . import can_fuse
from .exact_merge import ExactMerge, in_float32
from .ordinary_call import ordinary_call
from .stacked import scaled, stacked
from .switching import Marked


class FusedLinear(Marked, ExactMerge, LoraLinear):
    """PEFT looks for "Linear" in the names of the classes of tuner layers, so this one has it too."""

    def forward(self, x, *args, **kwargs):
        if not isinstance(self, FusedLinear):  # a wrapper has kept this method past unfuse
            return LoraLinear.forward(self, x, *args, **kwargs)
        if not args and not kwargs and not rows_of_batch.in_use and not torch.compiler.is_compiling():
            found = ordinary_call(self, x)
            if found is not None:
                self._fused_calls[can_fuse.FUSED] += 1
                weight, bias, A, B, scaling, p = found
                return lora_linear_unchecked(x, weight, bias, A, B, float(scaling), float(p))
        names = kwargs.get("adapter_names")
        rows = rows_of_batch.current() if names is None else None
        held = self._modules["lora_A"]._modules
        if self.disable_adapters or self.merged and names is None and rows is None:
            return super().forward(x, *args, **kwargs)
        if names is None and rows is not None:
            names = kwargs["adapter_names"] = rows.of(self, x)
        if names is None:
            active = [name for name in self.active_adapters if name in held]
        else:
            self._check_forward_args(x, adapter_names=names)  # PEFT's own errors
            rows = rows_of_batch.positions(names)
            active = [name for name in rows if name in held]
        if not active:
            return super().forward(x, *args, **kwargs)
        if args or kwargs and any(kwargs[key] is not None for key in kwargs if key != "adapter_names"):
            reason = "the call has further arguments"
        else:
            reason = why_not_call(self, x, active, names is not None)
        if not torch.compiler.is_dynamo_compiling():
            self._fused_calls[reason or can_fuse.FUSED] += 1
        if reason is not None:
            return super().forward(x, *args, **kwargs)
        if names is None or len(rows) == 1:
            return run(self, x, active)
        adapters = [(rows[name], *_weights(self, name), self.scaling[name]) for name in active]
        return mixed_rows_linear(x, *_base(self), adapters)

    def as_lora(self, x):
        """What lora_linear needs besides an input like x, if one call of it is all that forward does; else None.

        A call counted as fused: whoever asks makes it.
        """
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] in self.lora_variant:
            return None
        if rows_of_batch.current() is not None or why_not_call(self, x, active) is not None:
            return None
        if not torch.compiler.is_dynamo_compiling():
            self._fused_calls[can_fuse.FUSED] += 1
        return lora_arguments(self, active)

    def holds(self, name) -> bool:
        return name in self.lora_A

    def merged_weight(self, weight, names):
        """W with these adapters one after the other, added up in float32 and rounded once.

        A DoRA adapter scales the rows of the sum so far, by the lengths of W with its own update, as in PEFT.
        """
        if any(why_not_adapter(self, name) is not None for name in names):
            return None
        frozen = in_float32(weight.t() if is_conv1d(self.base_layer) else weight)
        total = frozen.clone()
        for name in names:
            delta = lora_delta(*_weights(self, name), self.scaling[name])
            total += delta
            if name in self.lora_variant:
                magnitude = self.lora_magnitude_vector[name].weight.detach()
                total *= row_scale(magnitude, torch.linalg.vector_norm(frozen + delta, dim=1))[:, None]
        total = total.t() if is_conv1d(self.base_layer) else total
        return total.to(weight.dtype).contiguous()

    def _get_name(self):
        return LoraLinear.__name__  # in repr, which names PEFT's class

    def extra_repr(self):
        return "fused"


def attach(layer):
    can_fuse.set_class(layer, FusedLinear)
    layer._fused_calls = Counter()


def detach(layer):
    can_fuse.take_back(layer, LoraLinear)


def why_not_layer(layer) -> str | None:
    """Why none of the layer's adapters can be fused, whatever the input; None if one can."""
    reason = can_fuse.why_not_forward(layer) or can_fuse.why_not_base(layer.base_layer)
    if reason is not None or not layer.lora_A:
        return reason
    reasons = [why_not_adapter(layer, name, is_loaded=False) for name in layer.lora_A]
    return None if None in reasons else reasons[0]


def why_not_adapter(layer, name, is_loaded=True) -> str | None:
    """is_loaded: whether its values must be there; with low_cpu_mem_usage they come after the layer."""
    variant = layer.lora_variant.get(name)
    if variant is not None and type(variant) is not DoraLinearVariant:
        return f"the adapter is of a variant, {type(variant).__name__}"
    entry, tensor_of = can_fuse.entry, can_fuse.tensor_of
    lora_A, lora_B = entry(layer, "lora_A", name), entry(layer, "lora_B", name)
    reason = (
        can_fuse.why_not_submodule(lora_A, "lora_A", (nn.Linear,))
        or can_fuse.why_not_submodule(lora_B, "lora_B", (nn.Linear,))
        or can_fuse.why_not_dropout(entry(layer, "lora_dropout", name))
    )
    if reason is not None:
        return reason
    A, B = tensor_of(lora_A, "weight"), tensor_of(lora_B, "weight")
    reason = can_fuse.why_not_parameter(A, "lora_A", is_loaded) or can_fuse.why_not_parameter(B, "lora_B", is_loaded)
    if reason is None and (tensor_of(lora_A, "bias") is not None or tensor_of(lora_B, "bias") is not None):
        reason = "lora_bias=True"
    if reason is None and (A.dim() != 2 or B.dim() != 2 or A.size(0) != B.size(1)):
        reason = "lora_A and lora_B are partitioned"
    if reason is None and variant is not None:
        magnitude = entry(layer, "lora_magnitude_vector", name)
        reason = can_fuse.why_not_parameter(tensor_of(magnitude, "weight"), "lora_magnitude_vector", is_loaded)
        if reason is None and can_fuse.hooked(magnitude):
            reason = "lora_magnitude_vector has hooks"
        if reason is None and isinstance(layer.scaling[name], torch.Tensor):
            reason = "DoRA with a scaling that is a tensor"
    return reason


def why_not_call(layer, x, active, by_row=False) -> str | None:
    """Why this call runs in PEFT's forward, or None. by_row: each row has one of the active adapters, or none."""
    base = layer._modules["base_layer"]
    reason = can_fuse.why_not_base(base) or can_fuse.why_not_input(x, base, layer.in_features)
    if reason is not None:
        return reason
    dtype = can_fuse.computing_dtype(x)
    for name in active:
        reason = why_not_adapter(layer, name) or _why_not_beside(layer, name, x, dtype)
        if reason is not None:
            return reason
    if by_row:
        if x.dim() < 2 or any(_dropout_p(layer, name) > 0 for name in active):
            return "adapter_names with dropout, or with an input that has no rows"
    elif len(active) > 1:
        if any(name in layer.lora_variant for name in active):
            return "several active adapters of which one is DoRA"
        if any(_dropout_p(layer, name) > 0 for name in active):
            return "several active adapters with dropout, each with a mask of its own"
    return None


def _weights(layer, name):
    return (can_fuse.tensor_of(can_fuse.entry(layer, holder, name), "weight") for holder in ("lora_A", "lora_B"))


def _base(layer):
    """weight [N, K] and bias [N] or None of the frozen layer."""
    base = layer._modules["base_layer"]
    weight = can_fuse.tensor_of(base, "weight")
    return weight.t() if is_conv1d(base) else weight, can_fuse.tensor_of(base, "bias")


def _why_not_beside(layer, name, x, dtype) -> str | None:
    A, B = _weights(layer, name)
    reason = can_fuse.why_not_dtype(dtype, A.dtype, "lora_A") or can_fuse.why_not_dtype(dtype, B.dtype, "lora_B")
    if reason is None and name in layer.lora_variant:
        magnitude = layer.lora_magnitude_vector[name].weight
        reason = can_fuse.why_not_dtype(dtype, magnitude.dtype, "lora_magnitude_vector")
    device = x.device
    if reason is None and (A.device != device or B.device != device):
        reason = "the adapter is on another device"
    if reason is None and x.dtype != A.dtype and not layer.cast_input_dtype_enabled:
        reason = "casting of the input is switched off"
    return reason


def _dropout_p(layer, name) -> float:
    """The probability that applies now: PEFT's dropout is a module with a training mode of its own."""
    dropout = can_fuse.entry(layer, "lora_dropout", name)
    return dropout.p if type(dropout) is nn.Dropout and dropout.training else 0.0


def run(layer, x, active):
    name = active[0]
    arguments = lora_arguments(layer, active)
    if name not in layer.lora_variant:
        return lora_linear(x, **arguments)
    if not layer.training:
        arguments["dropout_p"] = 0.0
    return dora_linear(x, magnitude=layer.lora_magnitude_vector[name].weight, **arguments)


def lora_arguments(layer, active):
    """What lora_linear takes besides x."""
    (weight, bias), name = _base(layer), active[0]
    A, B = _weights(layer, name)
    scaling = layer.scaling[name]
    if len(active) > 1:  # their updates add up: one adapter of all their ranks
        A, B = stacked([(*_weights(layer, n), layer.scaling[n]) for n in active])
        scaling = 1.0
    elif isinstance(scaling, torch.Tensor):  # after prepare_model_for_compiled_hotswap
        B, scaling = scaled(B, scaling), 1.0
    p = _dropout_p(layer, name)
    return dict(weight=weight, lora_A=A, lora_B=B, bias=bias, scaling=scaling, dropout_p=p)


def build(target, adapter_name, config, **kwargs):
    """PEFT's own layer for this target, fused; None, on which PEFT tries its other kinds, where it cannot be."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if kwargs.get("parameter_name") is not None or can_fuse.why_not_base(base) is not None:
        return None
    layer = dispatch_default(target, adapter_name, config, **kwargs)
    if type(layer) is LoraLinear and why_not_layer(layer) is None:
        attach(layer)
    return layer
