"""BitFit (arXiv:2106.10199) as a method of PEFT.

An adapter's folder has PEFT's layout: adapter_config.json with "peft_type": "BITFIT" and the fields of BitFitConfig,
and adapter_model.safetensors with one tensor [N] per bias, the trained value, named
`base_model.model.<module>.bitfit_bias`.
"""

from dataclasses import replace

import peft
from peft.tuners.tuners_utils import BaseTuner, _maybe_include_all_linear_layers, check_target_module_exists
from torch import nn

from ...frozen.modules import is_linear
from .bitfit_layer import BitFitLayer, BitFitLinear
from .bottleneck_layer import BottleneckLinear
from .configs import BitFitConfig
from .model import TunerModel, base_of, own_modules, wrapped
from .substitute import why_not


class BitFitModel(TunerModel):
    """A model with the BitFit adapter of a BitFitConfig; PEFT creates this object."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def plan(self, config: peft.PeftConfig) -> dict[str, nn.Module]:
        return plan(self.model, config) if isinstance(config, BitFitConfig) else super().plan(config)

    def _check_target_module_exists(self, config, key):
        found = super()._check_target_module_exists(config, key)
        if found or not isinstance(config, BitFitConfig):
            return found
        return check_target_module_exists(replace(config, target_modules=[]), key)  # False, or the exclusion marker

    def _create_and_replace(self, config, adapter_name, target, target_name, parent, current_key, **options):
        if isinstance(config, BitFitConfig):
            kind = BitFitLinear if is_linear(base_of(target)) else BitFitLayer
            wrapped(self.model, current_key, kind, outside=BottleneckLinear).update_layer(adapter_name)
        else:
            super()._create_and_replace(config, adapter_name, target, target_name, parent, current_key, **options)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **options) -> None:
        """PEFT's inject_adapter; modules that share a bias also share the adapter's bias."""
        super().inject_adapter(model, adapter_name, *args, **options)
        self._tie(adapter_name)

    def _cast_adapter_dtype(self, adapter_name, autocast_adapter_dtype=True):
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        self._tie(adapter_name)  # loading into meta tensors replaces shared parameters by separate ones

    def _tie(self, adapter):
        first: dict[nn.Parameter, nn.Parameter] = {}
        for layer in self.own_layers(BitFitLayer):
            own = layer.get_base_layer().bias
            if own is not None and adapter in layer.bitfit_bias:
                layer.bitfit_bias[adapter] = first.setdefault(own, layer.bitfit_bias[adapter])

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """PEFT's set_adapter. ValueError, before any change, if two of the adapters have a bias for the same layer."""
        for layer in self.own_layers(BitFitLayer):
            layer.check_together(adapter_name)
        BaseTuner.set_adapter(self, adapter_name, inference_mode)


def plan(model, config) -> dict[str, nn.Module]:
    """{name: module} of the modules whose biases are trained.

    Raises ValueError if there are no such modules, if target_modules matches a module without a bias and add_missing is
    off, or if a module has a forward on the instance.
    """
    found = {}
    everything = config.target_modules is None
    matching = replace(config, target_modules=".*" if everything else config.target_modules)
    matching = _maybe_include_all_linear_layers(matching, model)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in own_modules(model).items():
        if not check_target_module_exists(matching, name):
            continue
        base = base_of(module)
        adds = config.add_missing and is_linear(base) and not (everything and module is head)
        if isinstance(base._parameters.get("bias"), nn.Parameter) or adds:
            if _belongs_to_a_child(base):
                continue
            if obstacle := why_not(base):
                raise ValueError(f"BitFit: {name}, a {type(base).__name__}, {obstacle}: use exclude_modules")
            found[name] = module
        elif not everything:
            raise ValueError(
                f"target_modules={config.target_modules!r} matches {name}, a {type(base).__name__} that has no bias; "
                "add_missing=True gives linear layers one, exclude_modules leaves others out"
            )
    if not found:
        raise ValueError(
            f"BitFit finds no bias in this {type(model).__name__} with target_modules={config.target_modules!r}; "
            "add_missing=True gives linear layers one"
        )
    return found


def _belongs_to_a_child(module) -> bool:
    """Whether a submodule has the same bias parameter, as in the parents of some output layers."""
    own = module._parameters.get("bias")
    inside = (base_of(child)._parameters.get("bias") for child in module.modules() if child is not module)
    return own is not None and any(bias is own for bias in inside)
