"""BitFit (arXiv:2106.10199) as a method of PEFT.

An adapter's folder is as PEFT's are: adapter_config.json with "peft_type": "BITFIT" and the fields of BitFitConfig, and
in adapter_model.safetensors one tensor [N] for each bias, named `base_model.model.<module>.bitfit_bias`, its trained
value.
"""

from dataclasses import replace

from peft.tuners.tuners_utils import _maybe_include_all_linear_layers, check_target_module_exists
from torch import nn

from ..linear import is_linear
from .bitfit_layer import BitFitLayer, BitFitLinear, tie
from .model import TunerModel, base_of, cast_adapter, own_modules, wrapped
from .substitute import why_not


class BitFitModel(TunerModel):
    """A model on which a BitFitConfig's biases train; PEFT makes it."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer

    def plan(self, config):
        return plan(self.model, config)

    def _check_target_module_exists(self, peft_config, key):
        if key in self.planned(peft_config):
            return True
        matched = check_target_module_exists(_matching(self.model, peft_config), key)
        return False if matched else matched  # PEFT tells what is excluded from what is not named

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key):
        add(self.model, current_key, adapter_name)

    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        """PEFT's; ties what the modules share."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        tie(self.model, adapter_name)

    def set_adapter(self, adapter_name, inference_mode=False):
        """PEFT's; ValueError, before anything is switched, if two of the adapters have a bias of one layer."""
        check_together(self.model, adapter_name)
        super().set_adapter(adapter_name, inference_mode)

    def _cast_adapter_dtype(self, adapter_name, autocast_adapter_dtype=True):
        cast_adapter(self.model, adapter_name, autocast_adapter_dtype)
        tie(self.model, adapter_name)  # after a file was loaded onto tensors of no memory


def check_together(model, names) -> None:
    names = [names] if isinstance(names, str) else names
    for layer in model.modules():
        clash = layer.clash(names) if isinstance(layer, BitFitLayer) else None
        if clash:
            raise ValueError(clash)


def add(model, name, adapter, outside=()) -> None:
    """A bias of this adapter for the module of that name; `outside`: kinds of layers that stay around it."""
    kind = BitFitLinear if is_linear(base_of(model.get_submodule(name))) else BitFitLayer
    wrapped(model, name, kind, outside).update_layer(adapter)


def plan(model, config) -> dict[str, nn.Module]:
    """The modules whose biases are to train, {name: module}.

    Raises ValueError: there are none, one that is named has no bias and add_missing is off, or one's forward is not
    that of its class.
    """
    found, bare = {}, []
    matching = _matching(model, config)
    head = getattr(model, "get_output_embeddings", lambda: None)()
    for name, module in own_modules(model).items():
        if not check_target_module_exists(matching, name):
            continue
        base = base_of(module)
        adds = config.add_missing and is_linear(base) and (config.target_modules is not None or module is not head)
        if not isinstance(base._parameters.get("bias"), nn.Parameter) and not adds:
            bare.append((name, base))
        elif not _belongs_to_a_child(base):
            obstacle = why_not(base)
            if obstacle:
                raise ValueError(f"BitFit: {name}, a {type(base).__name__}, {obstacle}: use exclude_modules")
            found[name] = module
    if config.target_modules is not None and bare:
        name, base = bare[0]
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


def _matching(model, config):
    """A config by which PEFT matches names: everything that is not excluded where no target is named."""
    if config.target_modules is None:
        return replace(config, target_modules=".*")
    return _maybe_include_all_linear_layers(replace(config), model)


def _belongs_to_a_child(module) -> bool:
    """Whether the module holds its bias for one inside it, as some output layers' parents do."""
    inside = (base_of(child)._parameters.get("bias") for child in module.modules() if child is not module)
    own = module._parameters.get("bias")
    return own is not None and any(bias is own for bias in inside)
