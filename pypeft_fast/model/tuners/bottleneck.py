"""Bottleneck adapters as a method of PEFT: Houlsby (arXiv:1902.00751), Pfeiffer (2005.00247), parallel (2110.04366).

An adapter's folder has PEFT's layout: adapter_config.json with "peft_type": "BOTTLENECK" and the fields of
BottleneckConfig, and adapter_model.safetensors with these tensors, each after `base_model.model.<linear layer>.`:
`bottleneck_adapter_down.weight` [m, K] and `.bias` [m], `bottleneck_adapter_up.weight` [N, m] and `.bias` [N]; with
layer_norm also `bottleneck_adapter_norm.weight` and `.bias` [K]. <linear layer> is the layer whose output the adapter
changes. Files of the `adapters` library are not read: its last version, 1.3.0, needs transformers 4 and cannot be
imported with transformers 5, so a reader could not be tested.

Blocks are found by structure, not by the architecture's name. A block is an entry of a ModuleList that contains
attention. The feedforward part consists of the linear layers outside of attention: the first one that takes the
model's width, and the last one that returns the model's width.
"""

import peft
from torch import nn

from ...frozen.modules import is_conv1d, is_linear
from .bottleneck_layer import BottleneckLinear, Tap
from .configs import BottleneckConfig
from .model import TunerModel, base_of, own_modules, wrapped


class BottleneckModel(TunerModel):
    """A model with the bottleneck adapters of a BottleneckConfig; PEFT creates this object."""

    prefix = "bottleneck_adapter_"
    tuner_layer_cls = BottleneckLinear

    def plan(self, config: peft.PeftConfig) -> dict[str, str | None]:
        """{linear layer whose output an adapter changes: linear layer whose input the adapter takes}.

        None instead of the second layer: the adapter takes the output of the first layer. Raises ValueError if the
        model has no block of the expected structure.
        """
        found = {}
        for attention, start, end in find_blocks(self.model, own_modules(self.model)):
            if config.placement == "houlsby":
                found |= dict.fromkeys(attention)
            found[end] = start if config.placement == "parallel" else None
        return found

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **options):
        if not isinstance(config, BottleneckConfig):
            super()._create_and_replace(config, adapter_name, target, target_name, parent, current_key, **options)
            return
        places = self.planned(config)
        if current_key not in places:  # PEFT may choose targets from the names in a file
            where = f"placement={config.placement!r} puts bottlenecks on {', '.join(places)}"
            raise ValueError(f"{current_key} gets no bottleneck: {where}")
        source, N = places[current_key], features(base_of(target))[1]
        K = N if source is None else features(base_of(self.model.get_submodule(source)))[0]
        layer = wrapped(self.model, current_key, BottleneckLinear)
        layer.update_layer(adapter_name, config, K, N)
        if source is not None:
            layer.taps[adapter_name] = Tap()
            wrapped(self.model, source, BottleneckLinear).tapped[adapter_name] = layer.taps[adapter_name]

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """PEFT's merge_adapter; ValueError, before any merge, if one of the adapters is a bottleneck."""
        self._refuse_merging(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        if merge:
            self._refuse_merging(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _refuse_merging(self, names):
        for layer in self.own_layers(BottleneckLinear):
            layer.merge(adapter_names=names)


def find_blocks(model, modules) -> list[tuple[list[str], str, str]]:
    """For each block: the names of the last linear layer of each attention, of the first linear layer of the
    feedforward part, and of its last linear layer. ValueError if no block is found."""
    width = getattr(getattr(model, "config", None), "hidden_size", None)
    # By the last feedforward layer: a ModuleList inside of a block can lead to the same feedforward part twice.
    found: dict[str, tuple] = {}
    for name, module in modules.items():
        for index in range(len(module)) if isinstance(module, nn.ModuleList) else ():
            block = _block(modules, f"{name}.{index}.", width)
            if block is not None:
                found.setdefault(block[-1], block)
    if not found:
        raise ValueError(
            f"no transformer block is found in {type(model).__name__}: bottlenecks need a ModuleList of blocks, "
            "each with attention and a feedforward part of linear layers"
        )
    return list(found.values())


def features(linear) -> tuple[int, int]:
    """(K, N) of a linear layer: the numbers of inputs and outputs, also for a transposed or quantised weight."""
    return tuple(linear.weight.shape) if is_conv1d(linear) else (linear.in_features, linear.out_features)


def _block(modules, start, width):
    """The block whose modules' names begin with `start`, as in `find_blocks`; None if these modules are no block."""
    attention: dict[str, str] = {}  # {attention module: its last linear layer}
    starts, ends = [], []
    for name, module in modules.items():
        if not name.startswith(start) or not _is_called(base_of(module)):
            continue
        within = name.removeprefix(start).split(".")
        index = next((i for i, part in enumerate(within[:-1]) if _is_attention(part)), None)
        if index is not None:
            attention[".".join(within[: index + 1])] = name
            continue
        K, N = features(base_of(module))
        if K == width:
            starts.append(name)
        if N == width:
            ends.append(name)
    return (list(attention.values()), starts[0], ends[-1]) if attention and starts and ends else None


def _is_called(module) -> bool:
    """Whether this is a linear layer that its parent calls; nn.MultiheadAttention only reads the weight of out_proj."""
    return is_linear(module) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)


def _is_attention(part) -> bool:
    return part.lower().replace("_", "").endswith(("attention", "attn"))
