"""Bottleneck adapters as a method of PEFT: Houlsby (arXiv:1902.00751), Pfeiffer (2005.00247), parallel (2110.04366).

An adapter's folder is as PEFT's are: adapter_config.json with "peft_type": "BOTTLENECK" and the fields of
BottleneckConfig, and in adapter_model.safetensors, each name after `base_model.model.<linear layer>.`:
`bottleneck_adapter_down.weight` [m, K] and `.bias` [m], `bottleneck_adapter_up.weight` [N, m] and `.bias` [N], with
layer_norm `bottleneck_adapter_norm.weight` and `.bias` [K]. The linear layer is the one whose output the adapter
changes. Files of the adapters library are not read: its last version, 1.3.0, needs transformers 4 and does not import
beside transformers 5, so nothing here could be tested against it.
"""

from .blocks import features, find_blocks
from .bottleneck_layer import BottleneckLinear, Tap
from .configs import BottleneckConfig
from .model import TunerModel, base_of, own_modules, wrapped


class BottleneckModel(TunerModel):
    """A model with a BottleneckConfig's adapters; PEFT makes it."""

    prefix = "bottleneck_adapter_"
    tuner_layer_cls = BottleneckLinear

    def plan(self, config):
        """{linear layer whose output an adapter changes: the one whose input it takes, None for that output itself}.

        Raises ValueError if the structure of the model's blocks is not understood.
        """
        found = {}
        for block in find_blocks(self.model, own_modules(self.model)):
            if config.placement == "houlsby":
                found |= dict.fromkeys(block.attention)
            found[block.feedforward] = block.feedforward_in if config.placement == "parallel" else None
        return found

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **options):
        if not isinstance(config, BottleneckConfig):
            super()._create_and_replace(config, adapter_name, target, target_name, parent, current_key, **options)
            return
        source = self.planned(config)[current_key]
        K, N = features(base_of(target))
        if source is None:
            K = N
        else:
            K = features(base_of(self.model.get_submodule(source)))[0]
        layer = wrapped(self.model, current_key, BottleneckLinear)
        layer.update_layer(adapter_name, config, K, N)
        if source is not None:
            layer.taps[adapter_name] = Tap()
            wrapped(self.model, source, BottleneckLinear).tapped[adapter_name] = layer.taps[adapter_name]

    def merge_adapter(self, adapter_names=None, safe_merge=False):
        """PEFT's; ValueError, before anything is merged, if one of the adapters is a bottleneck."""
        self._refuse_merging(adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        if merge:
            self._refuse_merging(adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _refuse_merging(self, names):
        for layer in self.own_layers(BottleneckLinear):
            layer.merge(adapter_names=names)
