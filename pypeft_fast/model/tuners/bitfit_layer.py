"""BitFitLayer: a module, a linear layer or a layer norm say, with a bias an adapter."""

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from .layer import TunerLayer, rows_in_call
from .substitute import call_with_bias


class BitFitLayer(TunerLayer):
    """Runs the module with the active adapter's bias in the place of its own, whatever the module computes with it.

    bitfit_bias: {adapter: [N]}.
    """

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer):
        super().__init__(base_layer)
        self.bitfit_bias = nn.ParameterDict()
        self._own: tuple | None = None  # while merged: the bias's data before, (None,) if the module had no bias

    def update_layer(self, adapter_name) -> None:
        """A new adapter: a copy of the module's bias, zeros if it has none."""
        base = self.get_base_layer()
        bias = self._own[0] if self._own else base.bias
        if bias is None:
            N = base.out_features  # only a linear layer gets a bias that it has not
            bias = torch.zeros(N, device=base.weight.device, dtype=self.adapter_dtype(autocast=False))
        self.bitfit_bias[adapter_name] = nn.Parameter(bias.detach().clone())

    def set_adapter(self, adapter_names, inference_mode=False):
        """PEFT's; ValueError if two of the adapters have a bias here."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        clash = self.clash(names)
        if clash:
            raise ValueError(clash)
        super().set_adapter(names, inference_mode)

    def clash(self, names) -> str | None:
        """Why these adapters cannot be active here together, or None."""
        here = [name for name in names if name in self.bitfit_bias]
        return f"{' and '.join(here)} each have a bias of one layer; activate one of them" if here[1:] else None

    def forward(self, *args, **kwargs):
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(*args, **kwargs)
        rows = rows_in_call()
        if rows is None:
            return self._run(self._in_use(), *args, **kwargs)
        return self.by_rows(rows, args, lambda name, part, index: self._run(name, part, *args[1:], **kwargs))

    def _in_use(self) -> str | None:
        """The adapter whose bias stands for the module's own."""
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
        if rows_in_call() is not None:
            raise ValueError("adapter_names: the model reads this bias, so that its rows cannot get one each")
        return self.bitfit_bias[name].to(self.adapter_dtype(autocast=False) if own is None else own.dtype)

    def merge(self, safe_merge=False, adapter_names=None):
        """Puts the adapter's bias into the module, rounded to its dtype; the module's own is kept for unmerge.

        Raises ValueError if that would be a second adapter's; with safe_merge also if it is not finite.
        """
        names = [n for n in check_adapters_to_merge(self, adapter_names) if n in self.bitfit_bias]
        if not names:
            return
        clash = self.clash(self.merged_adapters + names)
        if clash:
            raise ValueError(clash)
        value = self.bitfit_bias[names[0]].detach()
        if safe_merge and not value.isfinite().all():
            raise ValueError(f"NaN or infinity in the bias of adapter {names[0]!r}: merging it would break the model")
        base = self.get_base_layer()
        if base.bias is None:
            self._own = (None,)
            base.bias = nn.Parameter(value.to(self.adapter_dtype(autocast=False)), requires_grad=False)
        else:
            value = value.to(base.bias.dtype, copy=True)
            # Modules may share one bias: the first of them keeps what it was, the others find it merged.
            self._own = () if _same_bits(base.bias, value) else (base.bias.data,)
            base.bias.data = value
        self.merged_adapters.append(names[0])

    def unmerge(self):
        """Gives the module its bias back, bit for bit, after the layers inside, which may have kept this one's bias."""
        if not self.merged:
            return
        for layer in reversed(self._inside()):
            if layer.merged:
                layer.unmerge()
        if self._own:
            base = self.get_base_layer()
            if self._own[0] is None:
                base.bias = None
            else:
                base.bias.data = self._own[0]
        self._own = None
        self.merged_adapters.clear()

    def _inside(self) -> list[BaseTunerLayer]:
        found = [self.base_layer]
        while isinstance(found[-1], BaseTunerLayer):
            found.append(found[-1].base_layer)
        return found[:-1]

    def delete_adapter(self, adapter_name):
        if adapter_name in self.merged_adapters:
            self.unmerge()
        super().delete_adapter(adapter_name)

    def _apply(self, fn, recurse=True):
        """.to(), .half(): the module's own bias is cast, and the adapter's merged again."""
        merged = [(m, list(m.merged_adapters)) for m in (self, *self._inside()) if m.merged] if self.merged else []
        self.unmerge()
        super()._apply(fn, recurse)
        for layer, names in merged:
            layer.merge(adapter_names=names)
        return self


class BitFitLinear(BitFitLayer):
    """Over a linear layer: PEFT looks for "Linear" in the names of tuner layers' classes."""


def _same_bits(a, b) -> bool:
    return torch.equal(a.detach().contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def tie(model, adapter) -> None:
    """Modules that share one bias share the adapter's, which low_cpu_mem_usage gives each of its own."""
    first: dict[nn.Parameter, nn.Parameter] = {}
    for layer in model.modules():
        if isinstance(layer, BitFitLayer) and adapter in layer.bitfit_bias:
            own = layer.get_base_layer().bias
            if own is not None:
                layer.bitfit_bias[adapter] = first.setdefault(own, layer.bitfit_bias[adapter])
