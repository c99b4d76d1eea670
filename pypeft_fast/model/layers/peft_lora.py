"""PEFT's lora.Linear on the fused ops: the Part of each adapter, rows of several adapters, pf.register's builder."""

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import dispatch_default
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.compiler import is_compiling

from ...frozen.operand import Frozen
from ...frozen.quantized_modules import is_quantized
from ..joints import rows as rows_of_batch
from ..joints.named_rows import named_rows
from . import frozen_base
from .dora import DoRA
from .facts import of_input
from .fused_layer import FusedLayer
from .lora import LoRA
from .lora_rows import LoRARows, RowAdapters
from .part import Part, compute
from .rules import why_not_called

# {class of an entry in PEFT's lora_variant: the Part of such an adapter}
VARIANTS: dict[type, type[Part]] = {DoraLinearVariant: DoRA}
KEPT = 4  # batches with other adapters whose RowAdapters a layer keeps


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
        batch = named_rows(names)
        if len(x) != len(batch.names) or self.merged_adapters or True in self.use_dora.values():
            self._check_forward_args(x, adapter_names=names)  # PEFT's own errors
        active = batch.held(self._modules["lora_A"]._modules)
        if not active:
            if args or kwargs:  # which PEFT may take out before it calls the base layer
                return self.peft_class.forward(self, x, *args, adapter_names=names, **kwargs)
            y = self.decoded(x, args, kwargs)
            return self.base_layer(x) if y is None else y
        describe = self.described if batch.is_one else self.described_rows
        reason, _, parts, weight, bias, is_plain = describe(x, active, args, kwargs)
        self.count(reason)
        self._remember_rows()
        if reason is not None:
            return self.peft_class.forward(self, x, *args, adapter_names=names, **kwargs)
        if not batch.is_one:
            parts = (LoRARows(parts, batch.index(active, x)),)
        return compute(parts, x, weight, bias, is_plain)

    def described_rows(self, x, active, args, kwargs):
        """`described` where each row of x has one of the adapters, or none; a RowAdapters for the parts."""
        compiling = is_compiling()
        reason = why_not_called(args, kwargs, compiling)
        if reason is not None:
            return reason, False, None, None, None, False
        base, weight, bias = frozen_base.read(self._modules["base_layer"], x)
        beside = base, of_input(x)
        its = None if compiling else self._call_cache.rows.get(active)  # torch.compile would guard on what is kept
        if its is None or its.beside != beside or not its.still_holds(self):
            its = RowAdapters(self, active, *beside)
            if not compiling:
                self._keep_rows(active, its)
        return its.reason, False, its, weight, bias, beside[1][-1] is None and not compiling

    def _keep_rows(self, active, its):
        """Keeps the adapters of the latest batches, in a new dictionary: other threads may read the old one."""
        kept = self._call_cache.rows.copy()
        kept.pop(active, None)
        if its.reason is None and its.watch(self):
            kept[active] = its
        self._call_cache.rows = dict(list(kept.items())[-KEPT:])

    def _remember_rows(self):
        """Notes a call with rows that a checkpoint may lose, for `active`."""
        if not is_compiling() and self.training and not rows_of_batch.are_kept():
            self._call_cache.was_of_rows = True

    def active(self):
        """RuntimeError in a backward pass, where checkpointing runs the layer again without the rows that it had."""
        if not is_compiling() and self._call_cache.was_of_rows:
            if torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    "checkpointing runs this layer again without the adapter_names of its call; checkpoint by "
                    "model.gradient_checkpointing_enable(), or give the block its names within the checkpoint"
                )
            if self.training:  # a call in eval mode may lie between a forward and its backward pass
                self._call_cache.was_of_rows = False
        return super().active()

    def delete_adapter(self, adapter_name):
        super().delete_adapter(adapter_name)
        self._call_cache.rows = {}  # which holds the parameters

    def _apply(self, *args, **kwargs):
        self._call_cache.rows = {}  # so that parameters can be swapped: see AdapterTable
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs):
        self._call_cache.rows = {}  # as in _apply
        super()._load_from_state_dict(*args, **kwargs)

    def as_lora(self, x):
        """The keyword arguments of lora_linear for an input like x, if forward is one call of lora_linear; else None.

        The call is counted as fused, so the caller must make it.
        """
        rows = rows_of_batch.current()
        if rows is None:
            active = self.active()
        else:
            batch = named_rows(rows.of(self, x))
            active = batch.held(self.lora_A) if batch.is_one else ()
        if self.disable_adapters or self.merged or len(active) != 1 or self.method(self, active[0]) is not LoRA:
            return None
        reason, _, parts, weight, bias, is_plain = self.described(x, active)
        if reason is not None or type(weight) is Frozen and (weight.dtype != x.dtype or not is_plain):
            return None
        self.count(reason)
        if rows is not None:
            self._remember_rows()
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
