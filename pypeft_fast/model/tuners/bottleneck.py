"""Bottleneck adapters as a method of PEFT: Houlsby (arXiv:1902.00751), Pfeiffer (2005.00247), parallel (2110.04366).

An adapter's folder is as PEFT's are: adapter_config.json with "peft_type": "BOTTLENECK" and the fields of
BottleneckConfig, and in adapter_model.safetensors, each name after `base_model.model.<linear layer>.`:
`bottleneck_adapter_down.weight` [m, K] and `.bias` [m], `bottleneck_adapter_up.weight` [N, m] and `.bias` [N], with
layer_norm `bottleneck_adapter_norm.weight` and `.bias` [K]. The linear layer is the one whose output the adapter
changes. Files of the adapters library are not read: its last version, 1.3.0, needs transformers 4 and does not import
beside transformers 5, so nothing here could be tested against it.
"""

from dataclasses import dataclass

from .blocks import features, find_blocks
from .bottleneck_config import BottleneckConfig
from .bottleneck_layer import BottleneckLinear, Tap
from .model import TunerModel, base_of, own_modules, wrapped


@dataclass(frozen=True)
class Placed:
    source: str | None  # the linear layer whose input the adapter takes instead, in parallel placement
    in_features: int
    out_features: int
    width: int


class BottleneckModel(TunerModel):
    """A model with a BottleneckConfig's adapters; PEFT makes it."""

    prefix = "bottleneck_adapter_"
    tuner_layer_cls = BottleneckLinear

    def plan(self, config):
        return plan(self.model, config)

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key):
        add(self.model, current_key, adapter_name, peft_config, self.planned(peft_config))

    def merge_adapter(self, adapter_names=None, safe_merge=False):
        """ValueError if one of the adapters is a bottleneck: it is no linear map."""
        refuse_merging(self.model, adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def merge_and_unload(self, progressbar=False, safe_merge=False, adapter_names=None):
        """ValueError, as merge_adapter; unload() takes the adapters off."""
        refuse_merging(self.model, adapter_names)
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)


def plan(model, config: BottleneckConfig) -> dict[str, Placed]:
    """{linear layer whose output an adapter changes: the adapter}, by the structure of the model's blocks.

    Raises ValueError if the structure is not understood.
    """
    modules = own_modules(model)
    found = {}
    for block in find_blocks(model, modules):
        places = [(block.feedforward, block.feedforward_in if config.placement == "parallel" else None)]
        if config.placement == "houlsby":
            places = [(name, None) for name in block.attention] + places
        for name, source in places:
            N = features(base_of(modules[name]))[1]
            K = N if source is None else features(base_of(modules[source]))[0]
            found[name] = Placed(source, K, N, max(1, int(K // config.reduction_factor)))
    return found


def add(model, name, adapter, config, places) -> None:
    """The adapter of this config on the linear layer of that name; ValueError if the plan `places` has none there."""
    if name not in places:
        raise ValueError(f"{name} gets no bottleneck with placement={config.placement!r}; only {', '.join(places)} do")
    place = places[name]
    layer = wrapped(model, name, BottleneckLinear)
    layer.update_layer(adapter, config, place.in_features, place.out_features, place.width)
    if place.source is not None:
        layer.taps[adapter] = wrapped(model, place.source, BottleneckLinear).tapped[adapter] = Tap()


def refuse_merging(model, names) -> None:
    """ValueError, before anything is merged, if one of the adapters (default: the active ones) is a bottleneck."""
    for layer in model.modules():
        if isinstance(layer, BottleneckLinear):
            layer.merge(adapter_names=names)
