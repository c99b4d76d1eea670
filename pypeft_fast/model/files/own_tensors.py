"""The tensors of an adapter that the model has, found in one walk over the model, without PEFT's some twenty walks.

A method or a config for which this walk could miss a tensor is left to PEFT.
"""

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from .dry_run import Place

METHODS = ("LORA", "IA3")  # the name of a tensor in a file is the model's name without the name of the adapter
_SHAPELESS = {
    "inference_mode", "base_model_name_or_path", "revision", "peft_version", "auto_mapping", "lora_alpha",
    "lora_dropout", "use_rslora", "init_lora_weights", "init_ia3_weights", "runtime_config",
}  # fmt: skip


def tensors_of(modules: dict[str, nn.Module], config, adapter_name: str) -> dict[str, torch.Tensor] | None:
    """{name in a file: the model's tensor} of an adapter; None if a file has more than the adapter's own layers.

    The names of compiled modules have the prefix of torch.compile's wrapper, as in PEFT.

    modules: {name: module} of the PeftModel. config: the adapter's config.
    """
    extras = ("modules_to_save", "trainable_token_indices")
    if config.peft_type not in METHODS or any(getattr(config, name, None) for name in extras):
        return None
    if getattr(config, "bias", "none") != "none":
        return None
    found = {}
    for name, module in modules.items():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return None
        if isinstance(module, BaseTunerLayer):
            for kind, holder in module._modules.items():
                if kind != "base_layer" and holder is not None:
                    found.update((f"{name}.{kind}{key}", t) for key, t in _held(holder, adapter_name))
    return found


def _held(holder, adapter_name):
    """(the rest of the name, tensor) of an adapter in one of PEFT's dictionaries of modules, parameters or buffers."""
    if (module := holder._modules.get(adapter_name)) is not None:
        yield from ((f".{key}", tensor) for key, tensor in module.state_dict(keep_vars=True).items())
    for tensors in (holder._parameters, holder._buffers):
        if tensors.get(adapter_name) is not None:
            yield "", tensors[adapter_name]


def like_another(model, config) -> Place | None:
    """The Place of a new adapter on this PeftModel, without a dry run: that of an adapter whose config has the same
    tensors; None if there is no such adapter. The tensors are on the meta device."""
    wanted = shaping(config)
    for name, its in model.peft_config.items():
        if its.peft_type == config.peft_type and shaping(its) == wanted:
            tensors = tensors_of(dict(model.named_modules()), its, name)
            if tensors:
                return Place(model, its, name, {k: torch.empty_like(t, device="meta") for k, t in tensors.items()})
    return None


def shaping(config) -> dict:
    """The config's fields without those that change neither names nor shapes, and with lists and sets alike."""
    values = {name: value for name, value in config.to_dict().items() if name not in _SHAPELESS}
    return {name: set(map(str, v)) if isinstance(v, (list, tuple, set)) else v for name, v in values.items()}
