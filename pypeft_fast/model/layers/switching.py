"""Marks the parameters that a switch of adapters has frozen, so that a later backward pass can raise an error.

PEFT's set_adapter and enable_adapters freeze the adapters that are not active. A switch between forward and backward
would silently lose the gradients of these adapters. A parameter that the user freezes is not marked.
"""

from torch import nn


class Marked:
    """A mixin for a PEFT layer."""

    def set_adapter(self, *args, **kwargs):
        self._marking(super().set_adapter, *args, **kwargs)

    def enable_adapters(self, *args, **kwargs):
        self._marking(super().enable_adapters, *args, **kwargs)

    def _marking(self, switch, *args, **kwargs):
        holders = [self._modules[name] for name in self.adapter_layer_names if name in self._modules]
        held: list[nn.Parameter] = [p for holder in holders for p in holder.parameters()]
        trained = [p for p in held if p.requires_grad]
        switch(*args, **kwargs)
        for parameter in trained:
            parameter.frozen_by_switching = not parameter.requires_grad
