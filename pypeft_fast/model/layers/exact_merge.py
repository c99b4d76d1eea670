"""Merging that keeps the frozen layer's own bits beside the merged ones, so that unmerging is exact in every dtype."""

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge

from . import can_fuse


class ExactMerge:
    """Before the class of a PEFT layer. A layer that the ops cannot run (hooked, offloaded) merges as PEFT does."""

    _frozen = None  # (weight.data, bias.data or None) of the base layer before the first merge

    def merge(self, safe_merge=False, adapter_names=None):
        """Folds adapters (default: the active ones) into the base layer; ValueError with safe_merge for NaN."""
        names = [name for name in check_adapters_to_merge(self, adapter_names) or () if self.holds(name)]
        base = self.base_layer
        if not names:
            return
        if can_fuse.why_not_base(base) is not None or bool(self.merged) != (self._frozen is not None):
            super().merge(safe_merge, names)
            return
        weight, bias = can_fuse.tensor_of(base, "weight"), can_fuse.tensor_of(base, "bias")
        before = weight.data, None if bias is None else bias.data
        frozen = self._frozen or before
        values = self.merged_weight(frozen[0], self.merged_adapters + names)
        try:
            if values is None:  # PEFT's own arithmetic, which may be in place: on a copy
                weight.data = before[0].clone()
                if bias is not None:
                    bias.data = before[1].clone()
                super().merge(safe_merge, names)
            else:
                if safe_merge and not values.isfinite().all():
                    raise ValueError(f"NaNs detected in the merged weights: the adapter {', '.join(names)} is broken")
                weight.data = values
                self.merged_adapters.extend(names)
        except (ValueError, RuntimeError):
            self._put_back(before)
            raise
        self._frozen = frozen

    def unmerge(self):
        """Puts the base layer's own weight and bias back, bit for bit."""
        if self._frozen is None:
            super().unmerge()
            return
        self._put_back(self._frozen)
        self._frozen = None
        self.merged_adapters.clear()

    def merged_weight(self, weight, names):
        """The base weight with these adapters, in its own layout; None: PEFT's merge computes it."""
        return None

    def _put_back(self, values):
        for name, value in zip(("weight", "bias"), values, strict=True):
            if value is not None:
                can_fuse.tensor_of(self.base_layer, name).data = value

    def update_layer(self, *args, **kwargs):  # PiSSA and OLoRA change the base weight: the frozen one, not the merged
        names, exact = list(self.merged_adapters), self._frozen is not None
        if exact:
            self.unmerge()
        super().update_layer(*args, **kwargs)
        if exact:
            self.merge(adapter_names=names)

    def _apply(self, fn, recurse=True):  # .to(), .half(): the frozen values are cast, and merged again
        names, exact = list(self.merged_adapters), self._frozen is not None
        if exact:
            self.unmerge()
        super()._apply(fn, recurse)
        if exact:
            self.merge(adapter_names=names)
        return self


def in_float32(weight):
    """A copy in float32, float64 for float64: what merging adds up in."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
