"""TunerLayer: the base class of the layers of BitFit and bottlenecks."""

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class TunerLayer(nn.Module, BaseTunerLayer):
    """A module of the model, `base_layer`, with named adapters; the module's attributes stay readable.

    base_layer may itself be a tuner layer.
    """

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.merged_adapters: list[str] = []
        self._active_adapter: list[str] = []
        self.training = base_layer.training

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base_layer":  # a library's private mark belongs to one module only
                raise
            return getattr(self.get_base_layer(), name)  # from the model's own module, not from a tuner layer inside

    def adapter_dtype(self, autocast) -> torch.dtype:
        """The dtype of the adapters' parameters: the base's dtype, or float32.

        float32 if the base is quantised, or if it has half precision and `autocast` is True.
        """
        base = self.get_base_layer()
        for tensor in (base._parameters.get("bias"), getattr(base, "weight", None)):
            if tensor is not None and tensor.is_floating_point() and tensor.dtype.itemsize > 1:
                return torch.float32 if autocast and tensor.dtype.itemsize == 2 else tensor.dtype
        return torch.float32

    def parameters_of(self, adapter) -> list[nn.Parameter]:
        holders = [getattr(self, name) for name in self.adapter_layer_names]
        held = [holder[adapter] for holder in holders if adapter in holder]
        return [p for item in held for p in ([item] if isinstance(item, nn.Parameter) else item.parameters())]

    def cast_adapter(self, adapter, autocast) -> None:
        """Casts in place, so that shared parameters stay shared and frozen parameters stay frozen."""
        for parameter in self.parameters_of(adapter):
            parameter.data = parameter.data.to(self.adapter_dtype(autocast))

    def _move_adapter_to_device_of_base_layer(self, adapter_name, device=None) -> None:
        """Overrides PEFT's method, which also casts to the base's dtype and so rounds float32 values of a file."""
        devices = (p.device for p in self.get_base_layer().parameters() if not p.is_meta)
        device = device or next(devices, None)
        for parameter in self.parameters_of(adapter_name):
            if device is not None and not parameter.is_meta:
                parameter.data = parameter.data.to(device)

    def by_rows(self, rows, args, function):
        """Calls function(name, rows of args[0], their indices) for each adapter in `rows`, and returns the results in
        the order of args[0]'s rows.

        Raises ValueError if an adapter is merged, or the layer gets no positional argument.
        """
        if self.merged:
            raise ValueError(f"adapter_names cannot be used while {self.merged_adapters} are merged; unmerge first")
        if not args:
            raise ValueError(f"adapter_names: {type(self.base_layer).__name__} is called without a positional argument")
        groups = rows.groups(self, args[0])
        if len(groups) == 1:
            return function(groups[0][0], args[0], groups[0][1])
        parts = [function(name, args[0].index_select(0, index), index) for name, index in groups]
        order = torch.cat([index for _, index in groups]).argsort()
        return torch.cat(parts).index_select(0, order)
