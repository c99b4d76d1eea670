"""PEFT's ia3.Linear with its forward on the fused ops; see lora.py."""

from collections import Counter
from functools import reduce

import torch
from peft.tuners.ia3.layer import Linear as IA3Linear

from ...autograd.ia3 import ia3_linear
from ...frozen.modules import is_conv1d
from ..joints import rows as rows_of_batch
from ..joints.mixed_rows import mixed_rows_scale
from . import can_fuse
from .exact_merge import ExactMerge
from .switching import Marked


class FusedLinear(Marked, ExactMerge, IA3Linear):
    """PEFT looks for "Linear" in the names of the classes of tuner layers, so this one has it too."""

    def forward(self, x, *args, **kwargs):
        if not isinstance(self, FusedLinear):  # a wrapper has kept this method past unfuse
            return IA3Linear.forward(self, x, *args, **kwargs)
        vectors, rows = self._modules["ia3_l"], rows_of_batch.current()
        if rows is not None and not self.disable_adapters:
            return self._by_rows(x, rows)
        active = [name for name in self.active_adapters if name in vectors]
        if self.disable_adapters or self.merged or not active:
            return super().forward(x, *args, **kwargs)
        reason = "the call has further arguments" if args or kwargs else why_not_call(self, x, active)
        if not torch.compiler.is_dynamo_compiling():
            self._fused_calls[reason or can_fuse.FUSED] += 1
        if reason is not None:
            return super().forward(x, *args, **kwargs)
        weight, bias = _base(self)
        ia3_l = reduce(torch.mul, [can_fuse.tensor_of(vectors, name).flatten() for name in active])
        return ia3_linear(x, weight, ia3_l, bias, feedforward=self.is_feedforward)

    def _by_rows(self, x, rows):
        """Each row with its own adapter's factors, in plain PyTorch: one product, one scaling."""
        if self.merged:
            raise ValueError("adapter_names cannot be used while adapters are merged; call unmerge_adapter first")
        factors = {name: vector.flatten() for name, vector in self.ia3_l.items()}
        groups = rows_of_batch.positions(rows.of(self, x))
        if self.is_feedforward:
            return self.base_layer(mixed_rows_scale(x, groups, factors))
        return mixed_rows_scale(self.base_layer(x), groups, factors)

    def holds(self, name) -> bool:
        return name in self.ia3_l

    def _get_name(self):
        return IA3Linear.__name__  # in repr, which names PEFT's class

    def extra_repr(self):
        return "fused"


def attach(layer):
    can_fuse.set_class(layer, FusedLinear)
    layer._fused_calls = Counter()


def detach(layer):
    can_fuse.take_back(layer, IA3Linear)


def _base(layer):
    base = layer._modules["base_layer"]
    weight = can_fuse.tensor_of(base, "weight")
    return weight.t() if is_conv1d(base) else weight, can_fuse.tensor_of(base, "bias")


def why_not_layer(layer) -> str | None:
    """Why none of the layer's adapters can be fused, whatever the input; None if one can."""
    reason = can_fuse.why_not_forward(layer) or can_fuse.why_not_base(layer.base_layer)
    if reason is not None or not layer.ia3_l:
        return reason
    reasons = [can_fuse.why_not_parameter(vector, "ia3_l", is_loaded=False) for vector in layer.ia3_l.values()]
    return None if None in reasons else reasons[0]


def why_not_call(layer, x, active) -> str | None:
    """Why this call runs in PEFT's forward, or None."""
    base, vectors = layer._modules["base_layer"], layer._modules["ia3_l"]
    reason = can_fuse.why_not_base(base) or can_fuse.why_not_input(x, base, layer.in_features)
    if reason is not None:
        return reason
    dtype = can_fuse.computing_dtype(x)
    for name in active:
        vector = can_fuse.tensor_of(vectors, name)
        reason = can_fuse.why_not_parameter(vector, "ia3_l") or can_fuse.why_not_dtype(dtype, vector.dtype, "ia3_l")
        if reason is None and vector.device != x.device:
            reason = "ia3_l is on another device"
        if reason is not None:
            return reason
    return None
