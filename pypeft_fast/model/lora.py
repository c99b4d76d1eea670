"""LoRA on a model. This file and those of the other methods have the same functions, which the Tuner calls:

plan(tuner, config)             what a config means on the model: targets, each with a .name; raises, changes nothing
complete(tuner, config, plan)   fills in the config what was found
shapes(tuner, config, plan)     {name in the adapter's file: shape}
add(tuner, adapter, config, plan, autocast, fresh)   puts a new adapter on the model, not yet active; fresh: its values
                                are to be trained, else a file's replace them
tensors(tuner, adapter)         {name in the adapter's file: tensor of the model}
ALIKE                           fields in which two adapters of one name must agree
"""

import math
import warnings

import torch
from torch import nn

from ..nn.init import check_weight
from .config import PeftType
from .linear_layer import AdaptedLayer, frozen_weight, wrap
from .lora_config import LoraConfig
from .saved_module import SavedModule
from .targets import Target, ends_with, find_linear, resolve_targets

ALIKE = ("bias", "r", "lora_alpha", "use_rslora", "use_dora")
PREFIX = "base_model.model."  # of the names in an adapter's file
# The modules that the method's users usually adapt, by the model's config.model_type.
_QV = ["q_proj", "v_proj"]
DEFAULT_TARGETS = {
    **dict.fromkeys(["bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral", "stablelm"], _QV),
    **dict.fromkeys(["gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"], _QV),
    **dict.fromkeys(["t5", "mt5"], ["q", "v"]),
    **dict.fromkeys(["bert", "roberta", "xlm-roberta", "electra", "layoutlm"], ["query", "value"]),
    **dict.fromkeys(["bloom", "gpt_neox", "chatglm", "RefinedWebModel", "RefinedWeb", "falcon"], ["query_key_value"]),
    **dict.fromkeys(["gpt2", "gpt_bigcode"], ["c_attn"]),
    "blip-2": ["q", "v", *_QV],
    "deberta-v2": ["query_proj", "value_proj"],
    "deberta": ["in_proj"],
    "mpt": ["Wqkv"],
    "btlm": ["c_proj", "c_attn"],
    "codegen": ["qkv_proj"],
    "phi": [*_QV, "fc1", "fc2"],
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "rwkv": ["key", "value", "receptance", "output"],
    "rwkv7": ["r_proj", "k_proj", "v_proj", "o_proj", "key", "value"],
}


def plan(tuner, config: LoraConfig) -> list[Target]:
    """The layers to adapt, in the model's order, with rank and scaling of each; targets.find_linear says what raises.

    Warns of an entry of rank_pattern or alpha_pattern that has no effect.
    """
    modules = tuner.own_modules()
    targets = []
    for name in find_linear(tuner.model, modules, config, DEFAULT_TARGETS):
        r = _pattern(config.rank_pattern, name, config.r)
        alpha = _pattern(config.alpha_pattern, name, config.lora_alpha)
        check_weight(config.init_lora_weights, r, frozen_weight(modules[name]))
        targets.append(Target(name, r, alpha, alpha / (math.sqrt(r) if config.use_rslora else r)))
    for field in ("rank_pattern", "alpha_pattern"):
        idle = [key for key in getattr(config, field) if not any(ends_with(key, target.name) for target in targets)]
        if idle:
            warnings.warn(f"{field}: {', '.join(idle)} match no adapted layer and have no effect", stacklevel=2)
    return targets


def _pattern(patterns, name, default):
    """The value of the first pattern that matches the end of the name."""
    return next((v for key, v in patterns.items() if ends_with(key, name)), default)


def complete(tuner, config, targets) -> None:
    config.target_modules = resolve_targets(tuner.model, tuner.own_modules(), config, DEFAULT_TARGETS)
    last = tuner.model.get_submodule(targets[-1].name)
    config.fan_in_fan_out = not isinstance(last, nn.Linear)  # PEFT reads a Conv1D's adapter by this


def shapes(tuner, config, targets) -> dict[str, torch.Size]:
    found = {}
    for target in targets:
        N, K = frozen_weight(tuner.model.get_submodule(target.name)).shape
        found[f"{PREFIX}{target.name}.lora_A.weight"] = torch.Size([target.r, K])
        found[f"{PREFIX}{target.name}.lora_B.weight"] = torch.Size([N, target.r])
        if config.use_dora:
            found[f"{PREFIX}{target.name}.lora_magnitude_vector"] = torch.Size([N])
    return found | {key: p.shape for key, p in _biases(tuner, config.bias, {t.name for t in targets}).items()}


def add(tuner, adapter, config, targets, autocast, fresh) -> None:
    trained = [name for name, other in tuner.peft_config.items() if getattr(other, "bias", "none") != "none"]
    if trained and config.bias != "none":
        raise ValueError(f"bias={config.bias!r}: adapter {trained[0]!r} trains the same biases already")
    copied = [name for name, other in tuner.peft_config.items() if other.KIND == PeftType.BITFIT]
    if copied and config.bias != "none":
        raise ValueError(f"bias={config.bias!r}: the BitFit adapter {copied[0]!r} has copies of the same biases")
    for target in targets:
        layer = wrap(tuner.model.get_submodule(target.name))
        tuner.model.set_submodule(target.name, layer)
        dtype = layer.adapter_dtype(autocast)
        layer.add_lora(adapter, target, config.lora_dropout, config.init_lora_weights, config.use_dora, dtype)


def tensors(tuner, adapter) -> dict[str, torch.Tensor]:
    found, targets = {}, set()
    for name, layer in tuner.own_modules().items():
        if isinstance(layer, AdaptedLayer) and adapter in layer.lora_A:
            targets.add(name)
            found[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A[adapter].weight
            found[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B[adapter].weight
            if adapter in layer.lora_magnitude_vector:
                found[f"{PREFIX}{name}.lora_magnitude_vector"] = layer.lora_magnitude_vector[adapter].weight
    return found | _biases(tuner, tuner.peft_config[adapter].bias, targets)


def _biases(tuner, kind, targets) -> dict[str, torch.Tensor]:
    """The biases that bias="all" or "lora_only" trains; PEFT keeps an adapted layer's under base_layer."""
    found = {}
    for name, module in tuner.own_modules().items() if kind != "none" else ():
        bias = getattr(module, "bias", None)
        if isinstance(module, SavedModule) or not isinstance(bias, nn.Parameter):
            continue
        adapted = name in targets or isinstance(module, AdaptedLayer)
        if kind == "all" or adapted:
            found[f"{PREFIX}{name}.base_layer.bias" if adapted else f"{PREFIX}{name}.bias"] = bias
    return found


def train_biases(tuner, kinds) -> None:
    """Lets the biases of the model train, or not: as the active adapters' `bias` fields say."""
    for module in tuner.own_modules().values():
        bias = getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter) and not isinstance(module, SavedModule):
            bias.requires_grad_("all" in kinds or "lora_only" in kinds and isinstance(module, AdaptedLayer))
