"""Bottleneck adapters on a model; the functions are those that lora.py describes.

An adapter's folder is as PEFT's are: adapter_config.json with "peft_type": "BOTTLENECK" and the fields of
BottleneckConfig, and in adapter_model.safetensors `base_model.model.<linear layer>.bottleneck.down.weight` [m, K],
`.down.bias` [m], `.up.weight` [N, m], `.up.bias` [N], with layer_norm `.norm.weight` and `.norm.bias` [K]. The linear
layer is the one whose output the adapter changes. Files of the adapters library are not read: its last version, 1.3.0,
needs transformers 4 and does not import beside transformers 5, so nothing here could be tested against it.
"""

from dataclasses import dataclass

import torch

from ..nn.bottleneck import Bottleneck
from .blocks import find_blocks
from .bottleneck_config import BottleneckConfig
from .linear_layer import AdaptedLayer, frozen_weight, wrap
from .lora import PREFIX

ALIKE = ("placement", "reduction_factor", "activation", "scaling", "dropout", "layer_norm")


@dataclass(frozen=True)
class Placed:
    name: str  # of the linear layer whose output the adapter changes
    source: str | None  # of the linear layer whose input it takes instead, in parallel placement
    in_features: int
    out_features: int
    width: int


def plan(tuner, config: BottleneckConfig) -> list[Placed]:
    """Where the adapters go, by the structure of the model's blocks; ValueError if it is not understood."""
    modules = tuner.own_modules()
    found = []
    for block in find_blocks(tuner.model, modules):
        places = [(block.feedforward, block.feedforward_in if config.placement == "parallel" else None)]
        if config.placement == "houlsby":
            places = [(name, None) for name in block.attention] + places
        for name, source in places:
            N = frozen_weight(modules[name]).shape[0]
            K = N if source is None else frozen_weight(modules[source]).shape[1]
            found.append(Placed(name, source, K, N, max(1, int(K // config.reduction_factor))))
    return found


def complete(tuner, config, targets) -> None:
    """Nothing: the model's structure says where the adapters are."""


def shapes(tuner, config, targets) -> dict[str, torch.Size]:
    found = {}
    for t in targets:
        parts = {"down.weight": (t.width, t.in_features), "down.bias": (t.width,)}
        parts |= {"up.weight": (t.out_features, t.width), "up.bias": (t.out_features,)}
        if config.layer_norm:
            parts |= {"norm.weight": (t.in_features,), "norm.bias": (t.in_features,)}
        found |= {f"{PREFIX}{t.name}.bottleneck.{part}": torch.Size(shape) for part, shape in parts.items()}
    return found


def add(tuner, adapter, config, targets, autocast, fresh) -> None:
    for target in targets:
        layer = _wrapped(tuner, target.name)
        network = Bottleneck(
            target.in_features,
            target.out_features,
            target.width,
            activation=config.activation,
            scaling=config.scaling,
            dropout=config.dropout,
            layer_norm=config.layer_norm,
        )
        layer.bottleneck[adapter] = network.to(layer.weight.device, layer.adapter_dtype(autocast))
        if target.source is not None:
            layer.taps[adapter] = _wrapped(tuner, target.source).tapped.setdefault(adapter, [])


def _wrapped(tuner, name) -> AdaptedLayer:
    layer = wrap(tuner.model.get_submodule(name))
    tuner.model.set_submodule(name, layer)
    return layer


def tensors(tuner, adapter) -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}{name}.bottleneck.{key}": tensor
        for name, layer in tuner.own_modules().items()
        if isinstance(layer, AdaptedLayer) and adapter in layer.bottleneck
        for key, tensor in layer.bottleneck[adapter].named_parameters()
    }
