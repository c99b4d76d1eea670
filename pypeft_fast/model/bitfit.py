"""BitFit (arXiv:2106.10199) on a model; the functions are those that lora.py describes.

An adapter's folder is as PEFT's are: adapter_config.json with "peft_type": "BITFIT" and the fields of BitFitConfig, and
in adapter_model.safetensors one tensor [N] for each bias, named `base_model.model.<module>.bias`, its trained value.
"""

from dataclasses import dataclass

import torch
from torch import nn

from .bias_layer import BiasLayer
from .bitfit_config import BitFitConfig
from .linear_layer import AdaptedLayer, frozen_weight, wrap
from .lora import PREFIX
from .targets import is_excluded, is_linear, matches, modules_to_save, resolve_targets, why_not

ALIKE = ("add_missing",)


@dataclass(frozen=True)
class Biased:
    name: str  # of the module in the model
    size: int


def plan(tuner, config: BitFitConfig) -> list[Biased]:
    """The modules whose biases are to train.

    Raises ValueError: there are none, one that is named has no bias and add_missing is off, or one's forward is not
    its own module's to replace.
    """
    modules = tuner.own_modules()
    wanted = _wanted(tuner, config)
    saved, found, bare = modules_to_save(config), [], []
    for name, module in modules.items():
        if wanted is not None and not matches(wanted, config, name) or is_excluded(config, saved, name):
            continue
        size = _size(module, config.add_missing)
        if size is None:
            bare.append(name)
        elif not _belongs_to_a_child(module):
            obstacle = why_not(module) if is_linear(module) else None
            if obstacle:
                raise ValueError(f"BitFit on {name}, a {type(module).__name__}{obstacle}: use exclude_modules")
            found.append(Biased(name, size))
    if wanted is not None and bare:
        raise ValueError(
            f"target_modules={config.target_modules!r} matches {bare[0]}, a {type(modules[bare[0]]).__name__} that has "
            "no bias; add_missing=True gives linear layers one, exclude_modules leaves others out"
        )
    if not found:
        raise ValueError(
            f"BitFit finds no bias in this {type(tuner.model).__name__} with target_modules={config.target_modules!r}; "
            "add_missing=True gives linear layers one"
        )
    return found


def _wanted(tuner, config):
    """Names or an expression; None for every module that has a bias."""
    if config.target_modules is not None:
        return resolve_targets(tuner.model, tuner.own_modules(), config, {})
    if not config.add_missing:
        return None
    modules = tuner.own_modules()
    linear = {n for n, m in modules.items() if is_linear(m)}
    head = getattr(tuner.model, "get_output_embeddings", lambda: None)()
    return {n for n, m in modules.items() if m is not head and (n in linear or _size(m, False) is not None)}


def _size(module, add_missing):
    """The length of the module's bias, or of the one that it would get; None if it has none."""
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        return bias.numel()
    return frozen_weight(module).shape[0] if add_missing and is_linear(module) else None


def _belongs_to_a_child(module) -> bool:
    """Whether the module holds its bias for one inside it, as some output layers' parents do."""
    if isinstance(module, (AdaptedLayer, BiasLayer)):
        return False
    inside = (child.bias for child in module.modules() if child is not module and hasattr(child, "bias"))
    return any(bias is module.bias for bias in inside)


def complete(tuner, config, targets) -> None:
    """target_modules stays None where every bias trains: the model's structure says which."""
    if config.target_modules is not None:
        config.target_modules = _wanted(tuner, config)


def shapes(tuner, config, targets) -> dict[str, torch.Size]:
    return {f"{PREFIX}{target.name}.bias": torch.Size([target.size]) for target in targets}


def add(tuner, adapter, config, targets, autocast, fresh) -> None:
    trained = [name for name, other in tuner.peft_config.items() if getattr(other, "bias", "none") != "none"]
    if trained:
        raise ValueError(f"BitFit: adapter {trained[0]!r} trains the same biases in place, by its field bias")
    shared: dict[int, nn.Parameter] = {}  # biases that several modules have in common stay common
    for target in targets:
        module = tuner.model.get_submodule(target.name)
        if is_linear(module):
            layer = wrap(module)
        else:
            layer = module if isinstance(module, BiasLayer) else BiasLayer(module)
        tuner.model.set_submodule(target.name, layer)
        bias = layer.bias
        half = layer.weight.dtype in (torch.float16, torch.bfloat16)
        like = dict(device=layer.weight.device, dtype=torch.float32 if half and autocast else layer.weight.dtype)
        start = torch.zeros(target.size, **like) if bias is None else bias.detach().to(**like, copy=True)
        layer.bitfit_bias[adapter] = shared.setdefault(id(layer if bias is None else bias), nn.Parameter(start))


def tensors(tuner, adapter) -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}{name}.bias": layer.bitfit_bias[adapter]
        for name, layer in tuner.own_modules().items()
        if isinstance(layer, (AdaptedLayer, BiasLayer)) and adapter in layer.bitfit_bias
    }
