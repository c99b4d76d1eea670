"""(IA)^3 (arXiv:2205.05638) on a model; the functions are those that lora.py describes."""

import re
import warnings
from dataclasses import dataclass

import torch
from torch import nn

from .ia3_config import IA3Config
from .linear_layer import AdaptedLayer, frozen_weight, wrap
from .lora import PREFIX
from .targets import find_linear, resolve_targets

ALIKE = ()
# {model type: (target_modules, feedforward_modules)}: what the method's users usually adapt.
_QVD, _KVD = (["q_proj", "v_proj", "down_proj"], ["down_proj"]), (["k_proj", "v_proj", "down_proj"], ["down_proj"])
_QKV = (["query_key_value", "dense_4h_to_h"], ["dense_4h_to_h"])
_USUAL = {
    **dict.fromkeys(["llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"], _QVD),
    **dict.fromkeys(["llama", "mistral"], _KVD),
    **dict.fromkeys(["gpt_neox", "RefinedWebModel", "RefinedWeb", "falcon"], _QKV),
    **dict.fromkeys(["gpt2", "gpt_bigcode"], (["c_attn", "mlp.c_proj"], ["mlp.c_proj"])),
    **dict.fromkeys(["bert", "roberta"], (["key", "value", "output.dense"], ["output.dense"])),
    "t5": (["k", "v", "wo"], ["wo"]),
    "mt5": (["k", "v", "wi_1"], []),
    "bloom": (["query_key_value", "mlp.dense_4h_to_h"], ["mlp.dense_4h_to_h"]),
    "opt": (["q_proj", "k_proj", "fc2"], ["fc2"]),
    "gptj": (["q_proj", "v_proj", "fc_out"], ["fc_out"]),
    "gpt_neo": (["q_proj", "v_proj", "c_proj"], ["c_proj"]),
    "bart": (["q_proj", "v_proj", "fc2"], ["fc2"]),
    "mixtral": (["k_proj", "v_proj", "w2"], ["w2"]),
    "deberta-v2": (["key_proj", "value_proj", "output.dense"], ["output.dense"]),
    "deberta": (["in_proj", "output.dense"], ["output.dense"]),
    "phi": (["q_proj", "v_proj", "fc2"], ["fc2"]),
}
DEFAULT_TARGETS = {kind: targets for kind, (targets, _) in _USUAL.items()}
DEFAULT_FEEDFORWARD = {kind: feedforward for kind, (_, feedforward) in _USUAL.items()}


@dataclass(frozen=True)
class Scaled:
    name: str  # of the module in the model
    feedforward: bool


def _feedforward(model, config):
    """config.feedforward_modules, None replaced by the usual ones."""
    if config.feedforward_modules is not None:
        return config.feedforward_modules
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in DEFAULT_FEEDFORWARD:
        raise ValueError(
            f"feedforward_modules=None: there is no default for the model type {kind!r}; give feedforward_modules, or "
            "[] for none"
        )
    return set(DEFAULT_FEEDFORWARD[kind])


def plan(tuner, config: IA3Config) -> list[Scaled]:
    """The layers to rescale; targets.find_linear and the absence of a default say what raises.

    Warns of feedforward_modules that have no effect.
    """
    chosen = _feedforward(tuner.model, config)

    def is_feedforward(name):
        if isinstance(chosen, str):
            return re.fullmatch(chosen, name) is not None
        return any(name.endswith(end) for end in chosen)

    names = find_linear(tuner.model, tuner.own_modules(), config, DEFAULT_TARGETS)
    targets = [Scaled(name, is_feedforward(name)) for name in names]
    if config.feedforward_modules and not any(target.feedforward for target in targets):
        warnings.warn(
            f"feedforward_modules={config.feedforward_modules!r} match no adapted layer and have no effect",
            stacklevel=2,
        )
    return targets


def complete(tuner, config, targets) -> None:
    names = resolve_targets(tuner.model, tuner.own_modules(), config, DEFAULT_TARGETS)
    ends = _feedforward(tuner.model, config)
    if config.feedforward_modules is None and not any(target.feedforward for target in targets):
        ends = set()
    elif isinstance(ends, set) and isinstance(names, set) and not ends <= names:
        # As names they could not be read from a file again, by PEFT either; an expression may say the same.
        ends = f".*({'|'.join(sorted(map(re.escape, ends)))})"
    config.target_modules, config.feedforward_modules = names, ends
    last = tuner.model.get_submodule(targets[-1].name)
    config.fan_in_fan_out = not isinstance(last, nn.Linear)  # PEFT reads a Conv1D's adapter by this


def _shape(layer, target) -> torch.Size:
    N, K = frozen_weight(layer).shape
    return torch.Size([1, K] if target.feedforward else [N, 1])


def shapes(tuner, config, targets) -> dict[str, torch.Size]:
    return {f"{PREFIX}{t.name}.ia3_l": _shape(tuner.model.get_submodule(t.name), t) for t in targets}


def add(tuner, adapter, config, targets, autocast, fresh) -> None:
    for target in targets:
        layer = wrap(tuner.model.get_submodule(target.name))
        tuner.model.set_submodule(target.name, layer)
        values = torch.randn(_shape(layer, target))
        if config.init_ia3_weights:
            values.fill_(1.0)
        layer.ia3_l[adapter] = nn.Parameter(values.to(layer.weight.device, layer.adapter_dtype(autocast)))
        layer.feedforward[adapter] = target.feedforward


def tensors(tuner, adapter) -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}{name}.ia3_l": layer.ia3_l[adapter]
        for name, layer in tuner.own_modules().items()
        if isinstance(layer, AdaptedLayer) and adapter in layer.ia3_l
    }
