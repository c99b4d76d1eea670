"""AdapterLinear: what the drop-in layers share, an nn.Linear whose frozen parameters an adapter can be merged into."""

import torch
from torch import nn


class AdapterLinear(nn.Linear):
    """The base of LoRALinear and IA3Linear; of itself it adds nothing to the frozen layer.

    A subclass calls `_freeze()` when it creates its parameters, and gives `_merged_values()`, a dict of those of
    "weight" and "bias" that merging changes.
    """

    @classmethod
    def _sharing(cls, linear):
        """A layer over the Parameters of `linear` themselves, without an adapter yet: nothing is copied.

        Raises TypeError if `linear` is not exactly an nn.Linear: a subclass may compute something else.
        """
        if type(linear) is not nn.Linear:
            raise TypeError(f"from_linear: linear is a {type(linear).__qualname__}, expected a torch.nn.Linear")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.training = linear.training
        return layer

    def _freeze(self):
        """Freezes weight and bias; returns an adapter's device and dtype, float32 over a half-precision weight."""
        self._frozen = None  # the original parameters by name, while merged: a dict, which nn.Module does not register
        self.weight.requires_grad_(False)
        if self.bias is not None:
            self.bias.requires_grad_(False)
        half = self.weight.dtype in (torch.bfloat16, torch.float16)
        return dict(device=self.weight.device, dtype=torch.float32 if half else self.weight.dtype)

    def _merged_values(self):
        raise NotImplementedError

    @property
    def merged(self) -> bool:
        return self._frozen is not None

    def merge(self):
        """Folds the adapter into parameters of its own, in float32: the layer then is a plain linear layer.

        The original ones are kept beside them, since undoing the arithmetic would not give their bits back; a module
        that shares them does not change. The state dict stays that of the unmerged layer.
        """
        if not self.merged:
            values = self._merged_values()
            self._frozen = {name: getattr(self, name) for name in values}
            for name, value in values.items():
                setattr(self, name, nn.Parameter(value, requires_grad=False))

    def unmerge(self):
        """Puts the original parameters back, bit for bit."""
        if self.merged:
            for name, parameter in self._frozen.items():
                setattr(self, name, parameter)
            self._frozen = None

    def _apply(self, fn, recurse=True):  # .to(), .half(), .cuda(): the originals are cast, and merged again
        merged = self.merged
        self.unmerge()
        super()._apply(fn, recurse)
        if merged:
            self.merge()
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, parameter in (self._frozen or {}).items():
            destination[prefix + name] = parameter if keep_vars else parameter.detach()

    def _load_from_state_dict(self, *args):
        self.unmerge()
        super()._load_from_state_dict(*args)
