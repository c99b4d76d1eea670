"""BottleneckLinear: a linear layer with bottleneck adapters on its output."""

import threading

from torch import nn

from ...autograd.bottleneck import bottleneck
from ...nn.bottleneck import Bottleneck
from ..joints import rows
from .layer import TunerLayer


class Tap:
    """Carries the input of one layer to another that runs later in the same call: each thread has its own.

    Gradient checkpointing runs both layers again, in their order, maybe in a thread of autograd's.
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
        return Tap, ()  # copying and pickling: what is on its way belongs to a call, not to the model


class BottleneckLinear(TunerLayer):
    """y = W x + b, then each active adapter in turn: y + scaling * (drop(f(norm(v) D^T + d)) U^T + u).

    v is y, or in parallel placement the input of another layer, which is a BottleneckLinear too and passes it on. Named
    as PEFT names parameters, so that its files hold `<layer>.bottleneck_adapter_down.weight`:
    bottleneck_adapter_down: {adapter: nn.Linear, D [m, K] and d [m]}; bottleneck_adapter_up: {adapter: nn.Linear,
    U [N, m] and u [N]}; bottleneck_adapter_norm: {adapter: nn.LayerNorm}, where the adapter has one.
    """

    adapter_layer_names = ("bottleneck_adapter_down", "bottleneck_adapter_up", "bottleneck_adapter_norm")
    other_param_names = ("bottleneck_config", "taps", "tapped")

    def __init__(self, base_layer):
        super().__init__(base_layer)
        self.bottleneck_adapter_down = nn.ModuleDict()
        self.bottleneck_adapter_up = nn.ModuleDict()
        self.bottleneck_adapter_norm = nn.ModuleDict()
        self.bottleneck_config: dict = {}  # {adapter: its BottleneckConfig}
        self.taps: dict[str, Tap] = {}  # where a parallel adapter's v arrives from another layer,
        self.tapped: dict[str, Tap] = {}  # which puts it there

    def update_layer(self, adapter_name, config, in_features, out_features) -> None:
        """A new adapter, initialised on the CPU, so that one seed gives the same values on every device."""
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
                f"the parallel bottleneck adapter {name!r} got no input: the layer that takes the feedforward part's "
                "input was not called before the one that gives its output; use placement='pfeiffer'"
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
        """ValueError if one of the adapters is here: it is no linear map."""
        names = self.active_adapters if adapter_names is None else adapter_names
        here = [name for name in names if name in self.bottleneck_adapter_down]
        if here:
            raise ValueError(f"the bottleneck adapter {here[0]!r} cannot be merged into a weight: it is no linear map")

    def unmerge(self):
        """Nothing is ever merged."""
