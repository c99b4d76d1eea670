"""TunerModel: what the models of our methods share, and the modules of a model that a plan may name."""

from abc import abstractmethod

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .layer import TunerLayer


class TunerModel(BaseTuner):
    """A method whose `plan` says, before anything is changed, which modules get an adapter."""

    _planned = (None, {})  # a config, and what its plan is

    @abstractmethod
    def plan(self, config) -> dict:
        """{name of a module: what it gets}; ValueError if the config does not fit the model."""

    def planned(self, config) -> dict:
        if self._planned[0] is not config:
            self._planned = config, self.plan(config)
        return self._planned[1]

    def _prepare_adapter_config(self, peft_config, model_config):
        return peft_config

    def _prepare_model(self, peft_config, model):
        self._planned = peft_config, self.plan(peft_config)

    def _check_target_module_exists(self, peft_config, key):
        return key in self.planned(peft_config)

    def _replace_module(self, parent, child_name, new_module, child):
        setattr(parent, child_name, new_module)

    def _cast_adapter_dtype(self, adapter_name, autocast_adapter_dtype=True):
        cast_adapter(self.model, adapter_name, autocast_adapter_dtype)


def cast_adapter(model, adapter, autocast) -> None:
    for layer in model.modules():
        if isinstance(layer, TunerLayer):
            layer.cast_adapter(adapter, autocast)


def own_modules(model) -> dict[str, nn.Module]:
    """{name: module} of the model without adapters: a tuner layer stands for what it holds, and neither its inside nor
    a module that an adapter has a copy of is the model's own."""
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
    """The module itself, or the one inside its tuner layers."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def wrapped(model, name, kind, outside=()) -> TunerLayer:
    """The model's layer of this kind at that name, put there if there is none: outermost, but inside those of the kinds
    `outside`."""
    parent, _, child = name.rpartition(".")
    parent = model.get_submodule(parent)
    while isinstance(parent._modules[child], outside):
        parent, child = parent._modules[child], "base_layer"
    if not isinstance(parent._modules[child], kind):
        setattr(parent, child, kind(parent._modules[child]))
    return parent._modules[child]
