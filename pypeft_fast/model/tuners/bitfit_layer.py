"""BitFitLayer: a module, such as a linear layer or a layer norm, with one bias per adapter."""

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from ..joints import rows
from .layer import TunerLayer
from .substitute import call_with_bias


class BitFitLayer(TunerLayer):
    """Runs any module that has a bias with the active adapter's bias instead of the module's own bias.

    bitfit_bias: {adapter: [N]}.
    """

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer):
        super().__init__(base_layer)
        self.bitfit_bias = nn.ParameterDict()
        self._own: list = []  # while merged: [bias.data before merging, or None if the module had no bias]

    def update_layer(self, adapter_name) -> None:
        """Adds an adapter: its bias starts as a copy of the module's bias, or as zeros if the module has none."""
        base = self.get_base_layer()
        bias = self._own[0] if self._own else base.bias
        if bias is None:
            N = base.out_features  # only a linear layer gets a bias if the module has none
            bias = torch.zeros(N, device=base.weight.device, dtype=self.adapter_dtype(autocast=False))
        self.bitfit_bias[adapter_name] = nn.Parameter(bias.detach().clone())

    def check_together(self, names) -> None:
        """ValueError if two of these adapters have a bias for this layer."""
        here = [name for name in ([names] if isinstance(names, str) else names) if name in self.bitfit_bias]
        if here[1:]:
            raise ValueError(f"adapters {' and '.join(here)} have a bias for the same layer; activate only one of them")

    def set_adapter(self, adapter_names, inference_mode=False):
        """PEFT's set_adapter; ValueError if two of the adapters have a bias for this layer."""
        self.check_together(adapter_names)
        super().set_adapter(adapter_names, inference_mode)

    def forward(self, *args, **kwargs):
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(*args, **kwargs)
        batch = rows.current()
        if batch is None:
            return self._run(self._in_use(), *args, **kwargs)
        return self.by_rows(batch, args, lambda name, part, index: self._run(name, part, *args[1:], **kwargs))

    def _in_use(self) -> str | None:
        """The adapter whose bias replaces the module's own, or None."""
        return next((name for name in self.active_adapters if name in self.bitfit_bias and not self.merged), None)

    def _run(self, name, *args, **kwargs):
        if name not in self.bitfit_bias:
            return self.base_layer(*args, **kwargs)
        return call_with_bias(self.base_layer, self.bitfit_bias[name], *args, **kwargs)

    @property
    def bias(self):
        """The bias in use, for code that reads it instead of calling the module, as nn.MultiheadAttention does."""
        own, name = self.get_base_layer().bias, self._in_use()
        if name is None or self.disable_adapters:
            return own
        if rows.current() is not None:
            raise ValueError(
                "adapter_names: the model reads the bias of this module instead of calling the module, so the rows "
                "cannot have different biases; run each adapter's rows in a call of their own"
            )
        return self.bitfit_bias[name].to(self.adapter_dtype(autocast=False) if own is None else own.dtype)

    def merge(self, safe_merge=False, adapter_names=None):
        """Stores the adapter's bias in the module, rounded to the module's dtype; the old bias is kept for unmerge.

        Raises ValueError if another adapter's bias is merged already; with safe_merge also if a value is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.bitfit_bias]
        if not names:
            return
        self.check_together(self.merged_adapters + names)
        base, value = self.get_base_layer(), self.bitfit_bias[names[0]].detach()
        if safe_merge and not value.isfinite().all():
            raise ValueError(f"NaN or infinity in the bias of adapter {names[0]!r}: merging it would break the model")
        if base.bias is None:
            self._own = [None]
            base.bias = nn.Parameter(value.to(self.adapter_dtype(autocast=False)), requires_grad=False)
        else:
            value = value.to(base.bias.dtype, copy=True)
            if not torch.equal(base.bias, value):  # equal if another module that shares this bias has merged it
                self._own, base.bias.data = [base.bias.data], value
        self.merged_adapters.append(names[0])

    def unmerge(self):
        """Restores the module's bias, bit for bit."""
        base = self.get_base_layer()
        for bias in self._own:
            if bias is None:
                base.bias = None
            else:
                base.bias.data = bias
        self._own = []
        self.merged_adapters.clear()

    def _apply(self, fn, recurse=True):
        """.to(), .half(): unmerges, casts the module's own bias, and merges the adapter again."""
        merged = list(self.merged_adapters)
        self.unmerge()
        super()._apply(fn, recurse)
        if merged:
            self.merge(adapter_names=merged)
        return self


class BitFitLinear(BitFitLayer):
    """BitFitLayer over a linear layer; PEFT looks for "Linear" in the class names of tuner layers."""
