"""MixedModel: PEFT's model of adapters of several methods, with BitFit and bottlenecks among them."""

from peft.tuners.mixed import MixedModel as PeftMixedTuner
from peft.tuners.tuners_utils import BaseTuner

from . import bitfit
from .bitfit import BitFitModel
from .bitfit_config import BitFitConfig
from .bottleneck import BottleneckModel, refuse_merging
from .bottleneck_config import BottleneckConfig
from .config import TunerConfig
from .layer import TunerLayer
from .model import TunerModel, cast_adapter
from .nesting import OUTER

METHODS = {BitFitConfig: BitFitModel, BottleneckConfig: BottleneckModel}


class MixedModel(PeftMixedTuner):
    """Each method does on this model what it does on a model of its own; nesting.py says how their layers lie."""

    _planned = TunerModel._planned
    planned = TunerModel.planned

    def plan(self, config):
        return METHODS[type(config)].plan(self, config)

    def _check_new_adapter_config(self, config):
        if isinstance(config, TunerConfig):
            BaseTuner._check_new_adapter_config(self, config)
        else:
            super()._check_new_adapter_config(config)
        _check_biases(self.peft_config)

    def _prepare_adapter_config(self, peft_config, model_config):
        if isinstance(peft_config, TunerConfig):
            return peft_config
        return super()._prepare_adapter_config(peft_config, model_config)

    def _prepare_model(self, peft_config, model):
        if isinstance(peft_config, TunerConfig):
            TunerModel._prepare_model(self, peft_config, model)

    def _check_target_module_exists(self, peft_config, key):
        if isinstance(peft_config, TunerConfig):
            return METHODS[type(peft_config)]._check_target_module_exists(self, peft_config, key)
        return super()._check_target_module_exists(peft_config, key)

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **options):
        if isinstance(config, BitFitConfig):
            bitfit.add(self.model, current_key, adapter_name, outside=OUTER[:1])
            return
        if not isinstance(config, TunerConfig):
            while isinstance(target, OUTER):
                parent, target_name, target = target, "base_layer", target.base_layer
        kind = METHODS.get(type(config), PeftMixedTuner)
        kind._create_and_replace(
            self, config, adapter_name, target, target_name, parent, current_key=current_key, **options
        )

    def _replace_module(self, parent, child_name, new_module, child):
        if isinstance(new_module, TunerLayer) or not hasattr(new_module, "base_layer"):
            setattr(parent, child_name, new_module)  # the module as it was, when an adapter is taken off
        else:
            super()._replace_module(parent, child_name, new_module, child)

    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        """PEFT's; ties what the modules share."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        bitfit.tie(self.model, adapter_name)

    def _mark_only_adapters_as_trainable(self, model):
        ours = [(p, p.requires_grad) for layer in self._layers() for p in layer.adapter_parameters()]
        super()._mark_only_adapters_as_trainable(model)  # knows PEFT's own by their names
        for parameter, trains in ours:
            parameter.requires_grad = trains

    def set_adapter(self, adapter_name, inference_mode=False):
        """PEFT's; ValueError, before anything is switched, if two of the adapters have a bias of one layer."""
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        bitfit.check_together(self.model, names)
        super().set_adapter(adapter_name, inference_mode)
        for layer in self._layers():
            layer.unmerge()
            layer.set_adapter(names, inference_mode)

    def _cast_adapter_dtype(self, adapter_name, autocast_adapter_dtype=True):
        if isinstance(self.peft_config[adapter_name], TunerConfig):
            cast_adapter(self.model, adapter_name, autocast_adapter_dtype)
            bitfit.tie(self.model, adapter_name)
        else:
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)

    def merge_adapter(self, adapter_names=None, safe_merge=False):
        """PEFT's; ValueError, before anything is merged, if one of the adapters is a bottleneck."""
        refuse_merging(self.model, adapter_names)
        super().merge_adapter(adapter_names, safe_merge)

    def _unload_and_optionally_merge(self, merge=True, progressbar=False, safe_merge=False, adapter_names=None):
        if merge:
            refuse_merging(self.model, adapter_names)
        return super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)

    def _layers(self) -> list[TunerLayer]:
        return [layer for layer in self.model.modules() if isinstance(layer, TunerLayer)]


def _check_biases(configs) -> None:
    """ValueError if one adapter trains or adds to biases in place of which another has its own."""
    copies = [name for name, config in configs.items() if isinstance(config, BitFitConfig)]
    for name, config in configs.items():
        field = "bias" if getattr(config, "bias", "none") != "none" else "lora_bias"
        if copies and getattr(config, field, False) not in (False, "none"):
            raise ValueError(
                f"{field}={getattr(config, field)!r} of adapter {name!r} changes the biases that the BitFit adapter "
                f"{copies[0]!r} replaces; leave it out"
            )
