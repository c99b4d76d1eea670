"""What an adapter's file holds, by PEFT's names: lora_A, lora_B, trained biases, whole modules and embeddings."""

import json
from pathlib import Path

import torch
from torch import nn

from .lora_layer import LoraLayer, frozen_weight
from .saved_module import SavedModule
from .targets import find_modules_to_save


def expected(tuner, config) -> dict[str, torch.Size]:
    """{name: shape} of everything in the file of an adapter of this config on this model, there yet or not."""
    targets, saved = tuner.plan(config)
    shapes = {}
    for target in targets:
        N, K = frozen_weight(tuner.model.get_submodule(target.name)).shape
        shapes[f"{target.name}.lora_A.weight"] = torch.Size([target.r, K])
        shapes[f"{target.name}.lora_B.weight"] = torch.Size([N, target.r])
    shapes |= {key: p.shape for key, p in _biases(tuner, config.bias, {t.name for t in targets}).items()}
    for name in saved:
        module = tuner.model.get_submodule(name)
        module = module.original_module if isinstance(module, SavedModule) else module
        shapes |= {f"{name}.{key}": t.shape for key, t in module.state_dict().items()}
    return shapes


def tensors(tuner, adapter) -> dict[str, torch.Tensor]:
    """{name: the tensor itself} of an adapter of this model."""
    found, targets = {}, set()
    for name, module in tuner.own_modules().items():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            targets.add(name)
            found[f"{name}.lora_A.weight"] = module.lora_A[adapter].weight
            found[f"{name}.lora_B.weight"] = module.lora_B[adapter].weight
        elif isinstance(module, SavedModule) and adapter in module.modules_to_save:
            copied = module.modules_to_save[adapter].state_dict()
            found |= {f"{name}.{key}": t for key, t in copied.items()}
    return found | _biases(tuner, tuner.peft_config[adapter].bias, targets)


def _biases(tuner, kind, targets) -> dict[str, torch.Tensor]:
    """The biases that bias="all" or "lora_only" trains; PEFT keeps an adapted layer's under base_layer."""
    found = {}
    for name, module in tuner.own_modules().items() if kind != "none" else ():
        bias = getattr(module, "bias", None)
        if isinstance(module, SavedModule) or not isinstance(bias, nn.Parameter):
            continue
        adapted = name in targets or isinstance(module, LoraLayer)
        if kind == "all" or adapted:
            found[f"{name}.base_layer.bias" if adapted else f"{name}.bias"] = bias
    return found


def copies(tuner, config) -> tuple[str, ...]:
    """How the names of needless tensors begin: where PEFT also writes biases or embeddings, it writes those of a module
    in modules_to_save three times, the trained ones as `<module>.*` and again, and the frozen ones."""
    saved = find_modules_to_save(tuner.model, tuner.own_modules(), config)
    return tuple(f"{name}.{copy}." for name in saved for copy in ("modules_to_save", "original_module"))


def embeddings(tuner) -> dict[str, torch.Tensor]:
    """{name: tensor} of the model's input and output embeddings, which a file may hold too.

    PEFT writes them where the vocabulary was resized, and where a config targets one by name.
    """
    model = tuner.model
    layers = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    found = {}
    for name, module in tuner.own_modules().items():
        if isinstance(module, SavedModule) or not any(module is layer for layer in layers):
            continue
        for key, parameter in module.named_parameters(recurse=False):
            found[f"{name}.{key}"] = found[f"{name}.base_layer.{key}"] = parameter
    return found


def vocabulary_was_resized(tuner, config) -> bool:
    """Whether the model's vocabulary is another than its base's, as far as the base's folder, if it is one, tells."""
    base = Path(config.base_model_name_or_path or "no base") / "config.json"
    now = getattr(getattr(tuner.model, "config", None), "vocab_size", None)
    if now is None or not base.is_file():
        return False
    return json.loads(base.read_text(encoding="utf-8")).get("vocab_size", now) != now


def written_embeddings(tuner) -> dict[str, torch.Tensor]:
    """The embeddings by the names that PEFT writes: an adapted one's under base_layer, others plain."""
    adapted = {name for name, module in tuner.own_modules().items() if isinstance(module, LoraLayer)}
    names = {key: key.rpartition(".")[0] for key in embeddings(tuner)}
    return {
        key: tensor
        for key, tensor in embeddings(tuner).items()
        if names[key].endswith(".base_layer") == (names[key].removesuffix(".base_layer") in adapted)
    }
