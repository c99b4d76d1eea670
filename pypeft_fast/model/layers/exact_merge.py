"""Merging that keeps a copy of the frozen weight, so that unmerging is exact, bit for bit, in every dtype."""

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge

from . import frozen_base, stored_weight
from .facts import tensor_of
from .lossy_merge import lossy_merge


class ExactMerge:
    """A mixin for a PEFT layer. A layer that the ops cannot run (hooked, offloaded) merges as PEFT does."""

    _frozen = None  # (weight or Frozen, bias.data or None) of the base layer before the first merge
    _held = None  # the attributes that held this weight: what stored_weight.held returned
    _merged_bits = None  # checksums of the merged weight and bias: a later write into the base changes the checksums

    def merge(self, safe_merge=False, adapter_names=None):
        """Merges adapters (default: the active ones) into the base layer.

        ValueError with safe_merge if a merged value is NaN or infinite. A quantised base is quantised again:
        RuntimeError, outside of `lossy_merge`, if rounding loses too much of the update.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) or () if self.holds(name)]
        base = self.base_layer
        if not names:
            return
        if frozen_base.why_not_module(base) is not None or bool(self.merged) != (self._frozen is not None):
            super().merge(safe_merge, names)
            return
        now, bias = stored_weight.weight_of(base), tensor_of(base, "bias")
        held, before_bias, merged = stored_weight.held(base), _data(bias), list(self.merged_adapters)
        untouched = self._frozen is None or self._merged_bits[0] == stored_weight.bits(now)
        values = self.merged_weight(self._frozen[0] if self._frozen else now, self.merged_adapters + names)
        try:
            if values is None or not untouched:  # PEFT merges, maybe in place, so the base gets a copy first
                if isinstance(now, torch.Tensor):
                    tensor_of(base, "weight").data = now.clone()
                if bias is not None:
                    bias.data = before_bias.clone()
                super().merge(safe_merge, names)
            else:
                if safe_merge and isinstance(values, torch.Tensor) and not values.isfinite().all():
                    raise ValueError(f"NaNs detected in the merged weights: the adapter {', '.join(names)} is broken")
                stored_weight.store(base, values)
                self.merged_adapters.extend(names)
        except (ValueError, RuntimeError):  # PEFT may have merged some adapters before the one that failed
            stored_weight.put_back(held)
            if bias is not None:
                bias.data = before_bias
            self.merged_adapters[:] = merged
            raise
        self._frozen, self._held = self._frozen or (now, before_bias), self._held or held
        weight_bits = stored_weight.bits(stored_weight.weight_of(base)) if untouched else None
        self._merged_bits = weight_bits, stored_weight.bits(tensor_of(base, "bias"))

    def unmerge(self):
        """Restores the base layer's weight and bias, bit for bit.

        If other code, such as weight averaging, has written into the merged weight, the merged update is subtracted
        from the current values instead; for a quantised weight PEFT's own unmerge runs.
        """
        frozen, held, merged_bits, names = self._frozen, self._held, self._merged_bits, list(self.merged_adapters)
        self._frozen = self._held = self._merged_bits = None
        if frozen is None:
            super().unmerge()
            return
        weight, bias = tensor_of(self.base_layer, "weight"), tensor_of(self.base_layer, "bias")
        is_own = merged_bits[0] == stored_weight.bits(stored_weight.weight_of(self.base_layer))
        merged = None
        if not is_own and isinstance(frozen[0], torch.Tensor):
            merged = self.merged_weight(frozen[0], names)
        if is_own:
            stored_weight.put_back(held)
        elif merged is None:
            super().unmerge()
            return
        else:
            weight.data = (in_float32(weight.data) + in_float32(frozen[0]) - in_float32(merged)).to(weight.dtype)
        if bias is not None and merged_bits[1] == stored_weight.bits(bias):
            bias.data = frozen[1]
        self.merged_adapters.clear()

    def merged_weight(self, weight, names):
        """The base weight with these adapters merged, in the base weight's layout; None if PEFT's merge must run."""
        return None

    def _with_frozen(self, change):
        """Unmerges, runs `change`, and merges the same adapters again."""
        names, exact = list(self.merged_adapters), self._frozen is not None
        if exact:
            self.unmerge()
        change()
        if exact:
            with lossy_merge():
                self.merge(adapter_names=names)

    def update_layer(self, *args, **kwargs):  # PiSSA and OLoRA change the base weight, which must not be merged then
        self._with_frozen(lambda: super(ExactMerge, self).update_layer(*args, **kwargs))

    def delete_adapter(self, adapter_name):  # transformers calls this for merged adapters too; PEFT's model raises
        if adapter_name in self.merged_adapters:
            self._with_frozen(lambda: super(ExactMerge, self).delete_adapter(adapter_name))
        else:
            super().delete_adapter(adapter_name)

    def _apply(self, fn, recurse=True):  # .to(), .half()
        self._with_frozen(lambda: super(ExactMerge, self)._apply(fn, recurse))
        return self


def in_float32(weight):
    """A copy in float32, or float64 for float64: the dtype in which merging computes sums."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)


def _data(parameter):
    return None if parameter is None else parameter.data
