"""BiasLayer: a module that is no linear layer, a layer norm say, with a bias an adapter."""

import torch
from torch import nn

from .layer import AdapterLayer, by_rows


class BiasLayer(AdapterLayer):
    """Runs the module with the active adapter's bias in the place of its own, whatever the module computes with it."""

    holders = ("bitfit_bias",)

    def __init__(self, module):
        super().__init__()
        self._start()
        self.original_module = module
        self.bitfit_bias = nn.ParameterDict()
        self.merged: list[str] = []  # the adapter whose bias stands for the module's own, active or not
        self.train(module.training)

    def clash(self, names):
        trained = [name for name in names if name in self.bitfit_bias]
        return f"{' and '.join(trained)} each have a bias of one layer; activate one of them" if trained[1:] else None

    def forward(self, x, *args, **kwargs):
        if self.rows is None:
            return self._run(self.merged or self.active, x, *args, **kwargs)
        if self.merged:
            raise ValueError(f"adapter_names cannot be used while {self.merged} are merged; unmerge_adapter() first")
        return by_rows(x, self.rows, lambda part, name: self._run([name], part, *args, **kwargs))

    def _run(self, names, *args, **kwargs):
        bias = next((self.bitfit_bias[name] for name in names if name in self.bitfit_bias), None)
        if bias is None:
            return self.original_module(*args, **kwargs)
        bias = bias.to(self.original_module.bias.dtype)
        return torch.func.functional_call(self.original_module, {"bias": bias}, args, kwargs)

    def merge(self, adapters, safe=False):
        """Lets an adapter's bias stand for the module's own: `replacement` then has it.

        With safe, raises ValueError instead if it is not finite.
        """
        here = [name for name in adapters if name in self.bitfit_bias]
        if here and safe and not self.bitfit_bias[here[0]].isfinite().all():
            raise ValueError(f"merging {here} would give NaN or infinite weights; the adapter is broken")
        self.merged = here or self.merged

    def unmerge(self):
        self.merged = []

    def merge_state(self):
        return list(self.merged)

    def restore(self, state):
        self.merged = state

    def replacement(self, adapters=None):
        if self.merged:
            own = self.original_module.bias
            self.original_module.bias = nn.Parameter(self.bitfit_bias[self.merged[0]].detach().to(own.dtype), False)
        return self.original_module

    def __getattr__(self, name):  # the model may read, say, a layer norm's weight
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.original_module, name)
