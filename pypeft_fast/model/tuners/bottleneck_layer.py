"""BottleneckLinear: a linear layer with bottleneck adapters on its output."""

import threading

from torch import nn

from ...autograd.bottleneck import bottleneck
from ...nn.bottleneck import Bottleneck
from ..joints import rows
from .layer import TunerLayer


class Tap:
    """Passes the input of one layer to another layer that runs later in the same call; thread-local.

    Gradient checkpointing runs both layers again in the same order, possibly in a thread of autograd.
    """

    def __init__(self):
        self._of_thread = threading.local()

    def put(self, x) -> None:
        self._of_thread.x = x

    def take(self):
        x = getattr(self._of_thread, "x", None)
        self._of_thread.x = None
        return x

    def __reduce__(self):
        return Tap, ()  # a copied or unpickled Tap is empty: its tensor belongs to a call, not to the model


class BottleneckLinear(TunerLayer):
    """y = W x + b, then each active adapter in turn: y + scaling * (drop(f(norm(v) D^T + d)) U^T + u).

    v is y; in parallel placement v is the input of another BottleneckLinear, which passes it on through a Tap. The
    attributes follow PEFT's naming, so PEFT writes `<layer>.bottleneck_adapter_down.weight` to a file:
    bottleneck_adapter_down: {adapter: nn.Linear, D [m, K] and d [m]}; bottleneck_adapter_up: {adapter: nn.Linear,
    U [N, m] and u [N]}; bottleneck_adapter_norm: {adapter: nn.LayerNorm}, only for adapters with layer_norm.
    """

    adapter_layer_names = ("bottleneck_adapter_down", "bottleneck_adapter_up", "bottleneck_adapter_norm")
    other_param_names = ("bottleneck_config", "taps", "tapped")

    def __init__(self, base_layer):
        super().__init__(base_layer)
        self.bottleneck_adapter_down = nn.ModuleDict()
        self.bottleneck_adapter_up = nn.ModuleDict()
        self.bottleneck_adapter_norm = nn.ModuleDict()
        self.bottleneck_config: dict = {}  # {adapter: its BottleneckConfig}
        self.taps: dict[str, Tap] = {}  # {parallel adapter of this layer: the Tap from which the adapter takes v}
        self.tapped: dict[str, Tap] = {}  # {parallel adapter of another layer: the Tap for this layer's input}

    def update_layer(self, adapter_name, config, in_features, out_features) -> None:
        """Adds an adapter, initialised on the CPU, so that a seed gives the same values on every device."""
        width = max(1, int(in_features // config.reduction_factor))
        network = Bottleneck(in_features, out_features, width, layer_norm=config.layer_norm)
        self.bottleneck_adapter_down[adapter_name] = network.down
        self.bottleneck_adapter_up[adapter_name] = network.up
        if network.norm is not None:
            self.bottleneck_adapter_norm[adapter_name] = network.norm
        self.bottleneck_config[adapter_name] = config
        self.cast_adapter(adapter_name, autocast=False)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    def forward(self, *args, **kwargs):
        if self.disable_adapters:
            return self.base_layer(*args, **kwargs)
        batch = rows.current()
        names = self.active_adapters if batch is None else set(batch.names)
        for name, tap in self.tapped.items():
            if name in names:
                tap.put(args[0] if args else next(iter(kwargs.values())))
        y = self.base_layer(*args, **kwargs)
        inputs = {name: self._tapped(name) for name in names if name in self.taps}
        if batch is None:
            for name in names:
                y = self._adapt(name, inputs.get(name), y)
            return y
        if not any(name in self.bottleneck_adapter_down for name in names):
            return y

        def adapt(name, part, index):
            v = inputs.get(name)
            return self._adapt(name, v if v is None else v.index_select(0, index), y.index_select(0, index))

        return self.by_rows(batch, args, adapt)

    def _tapped(self, name):
        v = self.taps[name].take()
        if v is None:
            raise ValueError(
                f"the parallel bottleneck adapter {name!r} got no input: the first layer of the feedforward part was "
                "not called before the last layer; use placement='pfeiffer'"
            )
        return v

    def _adapt(self, name, v, y):
        if name not in self.bottleneck_adapter_down:
            return y
        down, up = self.bottleneck_adapter_down[name], self.bottleneck_adapter_up[name]
        config = self.bottleneck_config[name]
        options = dict(activation=config.activation, scaling=config.scaling, dropout_p=config.dropout)
        if name in self.bottleneck_adapter_norm:
            norm = self.bottleneck_adapter_norm[name]
            options |= dict(norm_weight=norm.weight, norm_bias=norm.bias)
        if v is not None:
            v, options["residual"] = v.to(y), y
        tensors = (y if v is None else v, down.weight, down.bias, up.weight, up.bias)
        return bottleneck(*tensors, training=self.training, **options)

    def merge(self, safe_merge=False, adapter_names=None):
        """ValueError if this layer has one of the adapters: a bottleneck is not linear and cannot be merged."""
        names = self.active_adapters if adapter_names is None else adapter_names
        here = [name for name in names if name in self.bottleneck_adapter_down]
        if here:
            raise ValueError(
                f"the bottleneck adapter {here[0]!r} cannot be merged into a weight: a bottleneck is not linear; "
                "keep the adapter, or merge other adapters by adapter_names"
            )

    def unmerge(self):
        """Does nothing, since a bottleneck is never merged."""
