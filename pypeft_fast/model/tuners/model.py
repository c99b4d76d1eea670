"""TunerModel: the base class of BitFitModel and BottleneckModel, and functions on a model's modules."""

from abc import abstractmethod

import peft
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .configs import TunerConfig
from .layer import TunerLayer


class TunerModel(BaseTuner):
    """A method whose `plan` determines, before any change, which modules get an adapter.

    One class may derive from several methods, with PEFT's mixed model as the last base: each method handles its own
    configs and passes other configs to super().
    """

    _planned = (None, {})  # the last config, and the plan for it

    @abstractmethod
    def plan(self, config: peft.PeftConfig) -> dict:
        """{name of a module: a value that the method defines}; ValueError if the config does not fit the model."""

    def planned(self, config: peft.PeftConfig) -> dict:
        if self._planned[0] is not config:
            self._planned = config, self.plan(config)
        return self._planned[1]

    def _prepare_adapter_config(self, config, model_config):
        return config if isinstance(config, TunerConfig) else super()._prepare_adapter_config(config, model_config)

    def _prepare_model(self, config, model):
        if isinstance(config, TunerConfig):
            self._planned = config, self.plan(config)

    def _check_target_module_exists(self, config, key):
        if isinstance(config, TunerConfig):
            return key in self.planned(config)
        return super()._check_target_module_exists(config, key)

    def _replace_module(self, parent, child_name, new_module, child):
        if hasattr(new_module, "base_layer"):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            setattr(parent, child_name, new_module)  # PEFT's own _replace_module needs a weight

    def _cast_adapter_dtype(self, adapter_name, autocast_adapter_dtype=True):
        if not isinstance(self.peft_config[adapter_name], TunerConfig):
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
            return
        for layer in self.own_layers():
            layer.cast_adapter(adapter_name, autocast_adapter_dtype)

    def own_layers(self, kind: type = TunerLayer) -> list:
        return [module for module in self.model.modules() if isinstance(module, kind)]


def own_modules(model) -> dict[str, nn.Module]:
    """{name: module} of the model's own modules.

    A tuner layer is listed in place of the module that it wraps, and modules inside of a tuner layer are not listed.
    Modules of modules_to_save are not listed either.
    """
    found, inside = {}, None
    for name, module in model.named_modules():
        if not name or inside is not None and name.startswith(inside):
            continue
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            inside = f"{name}."
        if not isinstance(module, AuxiliaryTrainingWrapper):
            found[name] = module
    return found


def base_of(module) -> nn.Module:
    """The module itself, or the innermost module if this is a tuner layer."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def wrapped(model, name, kind, outside=()) -> TunerLayer:
    """The model's tuner layer of class `kind` at this name; inserts one if there is none.

    The new layer is the outermost, but inside of layers of the classes `outside`.
    """
    parent, _, child = name.rpartition(".")
    parent = model.get_submodule(parent)
    while isinstance(parent._modules[child], outside):
        parent, child = parent._modules[child], "base_layer"
    if not isinstance(parent._modules[child], kind):
        setattr(parent, child, kind(parent._modules[child]))
    return parent._modules[child]
