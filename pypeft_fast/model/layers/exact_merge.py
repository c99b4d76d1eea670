"""Merging that keeps the frozen layer's own bits beside the merged ones, so that unmerging is exact in every dtype."""

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge

from . import frozen_base
from .facts import tensor_of


class ExactMerge:
    """Before the class of a PEFT layer. A layer that the ops cannot run (hooked, offloaded) merges as PEFT does."""

    _frozen = None  # (weight.data, bias.data or None) of the base layer before the first merge
    _merged_bits = None  # of what merging made of them: whatever is written into the base meanwhile changes these

    def merge(self, safe_merge=False, adapter_names=None):
        """Folds adapters (default: the active ones) into the base layer; ValueError with safe_merge for NaN."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) or () if self.holds(name)]
        base = self.base_layer
        if not names:
            return
        if frozen_base.why_not_module(base) is not None or bool(self.merged) != (self._frozen is not None):
            super().merge(safe_merge, names)
            return
        weight, bias = _parameters(base)
        before, merged = (weight.data, None if bias is None else bias.data), list(self.merged_adapters)
        untouched = self._frozen is None or self._merged_bits[0] == _bits(weight)
        values = self.merged_weight(self._frozen[0] if self._frozen else before[0], self.merged_adapters + names)
        try:
            if values is None or not untouched:  # PEFT's own arithmetic, which may be in place: on a copy
                weight.data = before[0].clone()
                if bias is not None:
                    bias.data = before[1].clone()
                super().merge(safe_merge, names)
            else:
                if safe_merge and not values.isfinite().all():
                    raise ValueError(f"NaNs detected in the merged weights: the adapter {', '.join(names)} is broken")
                weight.data = values
                self.merged_adapters.extend(names)
        except (ValueError, RuntimeError):  # of several, PEFT has merged those before the one that fails
            self._put(before)
            self.merged_adapters[:] = merged
            raise
        self._frozen = self._frozen or before
        self._merged_bits = _bits(weight) if untouched else None, _bits(bias)

    def unmerge(self):
        """Puts the base layer's own weight and bias back, bit for bit.

        If they were written while merged, by another method's layer or an averaging of weights, what merging has
        changed is taken off what is there now instead.
        """
        frozen, bits, names = self._frozen, self._merged_bits, list(self.merged_adapters)
        self._frozen = self._merged_bits = None
        if frozen is None:
            super().unmerge()
            return
        weight, bias = _parameters(self.base_layer)
        merged = None if bits[0] == _bits(weight) else self.merged_weight(frozen[0], names)
        if bits[0] == _bits(weight):
            weight.data = frozen[0]
        elif merged is None:
            super().unmerge()
            return
        else:
            weight.data = (in_float32(weight.data) + in_float32(frozen[0]) - in_float32(merged)).to(weight.dtype)
        if bias is not None and bits[1] == _bits(bias):
            bias.data = frozen[1]
        self.merged_adapters.clear()

    def merged_weight(self, weight, names):
        """The base weight with these adapters, in its own layout; None: PEFT's merge computes it."""
        return None

    def _put(self, values):
        for parameter, value in zip(_parameters(self.base_layer), values, strict=True):
            if value is not None:
                parameter.data = value

    def _with_frozen(self, change):
        """Runs `change` on the frozen weight; what was merged is merged again."""
        names, exact = list(self.merged_adapters), self._frozen is not None
        if exact:
            self.unmerge()
        change()
        if exact:
            self.merge(adapter_names=names)

    def update_layer(self, *args, **kwargs):  # PiSSA and OLoRA change the base weight: the frozen one, not the merged
        self._with_frozen(lambda: super(ExactMerge, self).update_layer(*args, **kwargs))

    def delete_adapter(self, adapter_name):  # of the layer itself, as transformers calls it: PEFT's model refuses
        if adapter_name in self.merged_adapters:
            self._with_frozen(lambda: super(ExactMerge, self).delete_adapter(adapter_name))
        else:
            super().delete_adapter(adapter_name)

    def _apply(self, fn, recurse=True):  # .to(), .half()
        self._with_frozen(lambda: super(ExactMerge, self)._apply(fn, recurse))
        return self


def in_float32(weight):
    """A copy in float32, float64 for float64: what merging adds up in."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)


def _parameters(base):
    return tensor_of(base, "weight"), tensor_of(base, "bias")


def _bits(tensor):
    """A sum over a tensor's bits, None for none: no version counter shows a write through `.data`."""
    if tensor is None:
        return None
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.shape, int(tensor.detach().view(integers[tensor.dtype.itemsize]).sum(dtype=torch.int64))
