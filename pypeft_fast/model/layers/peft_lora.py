"""PEFT's lora.Linear on the fused ops: the Part of each adapter, rows of several adapters, pf.register's builder."""

from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import dispatch_default
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer

from ...frozen.operand import Frozen
from ...frozen.quantized_modules import is_quantized
from ..joints import rows as rows_of_batch
from . import frozen_base
from .dora import DoRA
from .fused_layer import FusedLayer
from .lora import LoRA
from .part import Part, compute

# {class of an entry in PEFT's lora_variant: the Part of such an adapter}
VARIANTS: dict[type, type[Part]] = {DoraLinearVariant: DoRA}


class OtherVariant(Part):
    """An adapter of a variant of LoRA without a fused op."""

    @classmethod
    def read(cls, layer, name):
        return type(layer.lora_variant[name]), cls()

    @staticmethod
    def why_not(found, is_loaded=True) -> str | None:
        return f"the adapter is of a variant, {found.__name__}"


class FusedLoRA(FusedLayer):
    """The first base class of a fused layer with LoRA adapters."""

    holder = "lora_A"

    @staticmethod
    def method(layer, name):
        variant = layer.lora_variant.get(name)
        return LoRA if variant is None else VARIANTS.get(type(variant), OtherVariant)

    def of_rows(self, x, names, *args, **kwargs):
        self._check_forward_args(x, adapter_names=names)  # PEFT's own errors
        rows = rows_of_batch.positions(names)
        active = [name for name in rows if name in self.lora_A]
        if active:
            reason, _, parts, weight, bias, _ = self.described(x, active, args, kwargs, by_row=True)
            self.count(reason)
            if reason is None and len(rows) == 1:
                return compute(parts, x, weight, bias)
            if reason is None:
                groups = [(rows[name], part) for name, part in zip(active, parts, strict=True)]
                return LoRA.by_rows(x, weight, bias, groups)
        return self.peft_class.forward(self, x, *args, adapter_names=names, **kwargs)

    def as_lora(self, x):
        """The keyword arguments of lora_linear for an input like x, if forward is one call of lora_linear; else None.

        The call is counted as fused, so the caller must make it.
        """
        active = self.active()
        if self.disable_adapters or self.merged or len(active) != 1 or self.method(self, active[0]) is not LoRA:
            return None
        if rows_of_batch.current() is not None:
            return None
        reason, _, parts, weight, bias, is_plain = self.described(x, active)
        if reason is not None or type(weight) is Frozen and (weight.dtype != x.dtype or not is_plain):
            return None
        self.count(reason)
        (part,), (_, bias) = parts, frozen_base.cast(x, weight, bias)
        return dict(weight=weight, bias=bias, lora_A=part.A, lora_B=part.B, scaling=part.scaling, dropout_p=part.p)


class FusedLinear(FusedLoRA, LoraLinear):
    peft_class = LoraLinear


def build(target, adapter_name, config, **kwargs):
    """PEFT's own layer for this target, fused if possible. None for a target that PEFT builds in another way."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if kwargs.get("parameter_name") is not None or is_quantized(base) or frozen_base.why_not_module(base) is not None:
        return None
    layer = dispatch_default(target, adapter_name, config, **kwargs)
    if type(layer) is LoraLinear and FusedLinear.why_not_layer(layer) is None:
        FusedLinear.attach(layer)
    return layer
