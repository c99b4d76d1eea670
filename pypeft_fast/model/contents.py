"""What an adapter's file holds, by PEFT's names: the method's own tensors, whole modules and embeddings."""

import json
from pathlib import Path

import torch

from .linear_layer import AdaptedLayer
from .lora import PREFIX
from .registry import method_of
from .saved_module import SavedModule
from .targets import find_modules_to_save


def _prefix(config) -> str:
    """Of modules' names: in PEFT a method that adds virtual tokens does without a tuner around the model."""
    return "base_model." if config.SEQUENCE_METHOD else PREFIX


def expected(tuner, config) -> dict[str, torch.Size]:
    """{name: shape} of everything in the file of an adapter of this config on this model, there yet or not."""
    plan, saved = tuner.plan(config)
    shapes = method_of(config).shapes(tuner, config, plan)
    for name in saved:
        module = tuner.model.get_submodule(name)
        module = module.original_module if isinstance(module, SavedModule) else module
        shapes |= {f"{_prefix(config)}{name}.{key}": t.shape for key, t in module.state_dict().items()}
    return shapes


def tensors(tuner, adapter) -> dict[str, torch.Tensor]:
    """{name: the tensor itself} of an adapter of this model."""
    config = tuner.peft_config[adapter]
    found = method_of(config).tensors(tuner, adapter)
    for name, module in tuner.own_modules().items():
        if isinstance(module, SavedModule) and adapter in module.modules_to_save:
            copied = module.modules_to_save[adapter].state_dict()
            found |= {f"{_prefix(config)}{name}.{key}": t for key, t in copied.items()}
    return found


def copies(tuner, config) -> tuple[str, ...]:
    """How the names of needless tensors begin: where PEFT also writes biases or embeddings, it writes those of a module
    in modules_to_save three times, the trained ones as `<module>.*` and again, and the frozen ones."""
    saved = find_modules_to_save(tuner.model, tuner.own_modules(), config)
    return tuple(
        f"{_prefix(config)}{name}.{copy}." for name in saved for copy in ("modules_to_save", "original_module")
    )


def embeddings(tuner, config) -> dict[str, torch.Tensor]:
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
            for middle in (".", ".base_layer."):
                found[f"{_prefix(config)}{name}{middle}{key}"] = parameter
    return found


def vocabulary_was_resized(tuner, config) -> bool:
    """Whether the model's vocabulary is another than its base's, as far as the base's folder, if it is one, tells."""
    base = Path(config.base_model_name_or_path or "no base") / "config.json"
    now = getattr(getattr(tuner.model, "config", None), "vocab_size", None)
    if now is None or not base.is_file():
        return False
    return json.loads(base.read_text(encoding="utf-8")).get("vocab_size", now) != now


def written_embeddings(tuner, config) -> dict[str, torch.Tensor]:
    """The embeddings by the names that PEFT writes: an adapted one's under base_layer, others plain."""
    prefix = _prefix(config)
    adapted = {prefix + name for name, module in tuner.own_modules().items() if isinstance(module, AdaptedLayer)}
    found = embeddings(tuner, config)
    names = {key: key.rpartition(".")[0] for key in found}
    return {
        key: tensor
        for key, tensor in found.items()
        if names[key].endswith(".base_layer") == (names[key].removesuffix(".base_layer") in adapted)
    }
