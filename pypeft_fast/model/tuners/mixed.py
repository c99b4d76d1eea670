"""MixedModel: PEFT's model of adapters of several methods, with BitFit and bottlenecks among them."""

from peft.tuners.mixed import MixedModel as PeftMixedTuner
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from .bitfit import BitFitModel
from .bottleneck import BottleneckModel
from .configs import BitFitConfig, TunerConfig
from .layer import TunerLayer


class MixedModel(BitFitModel, BottleneckModel, PeftMixedTuner):
    """Each method does on this model what it does on a model of its own.

    Around one module bottlenecks lie outermost, then BitFit, then PEFT's layers: what is computed does not depend on
    who came first. So y = N(V x + b'): V is what PEFT's methods make of the weight, DoRA's lengths included, b' the
    BitFit adapter's bias and N the bottlenecks.
    """

    tuner_layer_cls = BaseTunerLayer

    def _check_new_adapter_config(self, config):
        if isinstance(config, TunerConfig):
            BaseTuner._check_new_adapter_config(self, config)
        else:
            super()._check_new_adapter_config(config)
        _check_biases(self.peft_config)

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **options):
        while not isinstance(config, TunerConfig) and isinstance(target, TunerLayer):
            parent, target_name, target = target, "base_layer", target.base_layer
        super()._create_and_replace(config, adapter_name, target, target_name, parent, current_key, **options)

    def _mark_only_adapters_as_trainable(self, model):
        ours = [p for layer in self.own_layers() for n in self.peft_config for p in layer.parameters_of(n)]
        trains = [p.requires_grad for p in ours]
        super()._mark_only_adapters_as_trainable(model)  # knows PEFT's own by their names
        for parameter, wanted in zip(ours, trains, strict=True):
            parameter.requires_grad = wanted


def _check_biases(configs) -> None:
    """ValueError if one adapter trains or adds to biases in place of which another has its own."""
    copies = [name for name, config in configs.items() if isinstance(config, BitFitConfig)]
    for name, config in configs.items() if copies else ():
        for field in ("bias", "lora_bias"):
            if getattr(config, field, False) not in (False, "none"):
                raise ValueError(
                    f"{field}={getattr(config, field)!r} of adapter {name!r} changes the biases that the BitFit "
                    f"adapter {copies[0]!r} replaces; leave it out"
                )
