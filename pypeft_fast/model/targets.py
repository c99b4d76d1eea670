"""Which modules of a model a config means: the matching rules of peft 0.21."""

import re
import warnings
from dataclasses import dataclass

from torch import nn

from .config import TaskType

CLASSIFIERS = {
    TaskType.SEQ_CLS: ["classifier", "score"],
    TaskType.TOKEN_CLS: ["classifier", "score"],
    TaskType.QUESTION_ANS: ["qa_outputs"],
}


@dataclass(frozen=True)
class Target:
    name: str  # of the module in the model
    r: int
    lora_alpha: float
    scaling: float


def is_linear(module) -> bool:
    """nn.Linear, the Conv1D of transformers, or an AdaptedLayer in the place of one."""
    return isinstance(module, nn.Linear) or is_conv1d(module) or getattr(module, "stands_for_linear", False)


def why_not(module) -> str | None:
    """None if the module can be adapted, else what it has that an nn.Linear or a Conv1D has not."""
    if getattr(module, "stands_for_linear", False):
        return None
    if not is_linear(module):
        return ""
    if "forward" in vars(module) or not is_conv1d(module) and type(module).forward is not nn.Linear.forward:
        return " with a forward of its own"
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return " whose forward nn.MultiheadAttention does not call"
    if not isinstance(module._parameters.get("weight"), nn.Parameter) or not module.weight.is_floating_point():
        return " whose weight is quantised or computed"
    return None


def is_conv1d(module) -> bool:
    """The Conv1D of transformers: a linear layer that stores its weight as [K, N]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def find_linear(model, modules, config, defaults) -> list[str]:
    """Names of those of the model's `modules` ({name: module}) to adapt, in the model's order.

    defaults: {model type: what target_modules=None means}. Raises ValueError: nothing matches (the message lists what
    the model has), or a match cannot be adapted. Warns of exclude_modules that leaves nothing out.
    """
    wanted = resolve_targets(model, modules, config, defaults)
    saved = modules_to_save(config)
    excluded, found = [], []
    for name, module in modules.items():
        if not matches(wanted, config, name):
            continue
        if is_excluded(config, saved, name):
            excluded.append(name)
            continue
        obstacle = why_not(module)
        if obstacle is not None:
            raise ValueError(
                f"target_modules={config.target_modules!r} matches {name}, a {type(module).__name__}{obstacle}; "
                "supported are torch.nn.Linear and transformers' Conv1D; leave others out with exclude_modules"
            )
        found.append(name)
    if not found:
        raise ValueError(_nothing_found(model, modules, config, excluded))
    if config.exclude_modules and not excluded:
        warnings.warn(f"exclude_modules={config.exclude_modules!r} leaves nothing out", stacklevel=2)
    return found


def resolve_targets(model, modules, config, defaults) -> set[str] | str:
    """config.target_modules with None and "all-linear" replaced by what they mean on this model."""
    wanted = config.target_modules
    if wanted is None:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in defaults:
            raise ValueError(
                f"target_modules=None: there is no default for the model type {kind!r}; give target_modules"
            )
        return defaults[kind] if isinstance(defaults[kind], str) else set(defaults[kind])
    if isinstance(wanted, str) and wanted.lower() == "all-linear":
        return _all_linear(model, modules, config)
    return wanted


def modules_to_save(config) -> list[str]:
    """The names in config.modules_to_save, and the classifier's for a classification task."""
    return sorted({*(config.modules_to_save or ()), *CLASSIFIERS.get(config.task_type, ())})


def find_modules_to_save(model, modules, config) -> list[str]:
    """Names of the modules that train and are saved whole.

    Raises ValueError if the config names some and none matches; a task's own names need not.
    """
    names = modules_to_save(config)
    found = [key for key in modules if any(key.endswith(n) for n in names)]
    found = [key for key in found if not any(key.startswith(f"{other}.") for other in found)]
    if not found and set(config.modules_to_save or ()) - set(CLASSIFIERS.get(config.task_type, ())):
        raise ValueError(f"modules_to_save={config.modules_to_save} matches no module of {type(model).__name__}")
    return found


def _all_linear(model, modules, config) -> set[str]:
    """Every linear layer but the output layer of a language model or the head of a classifier."""
    heads = []
    if hasattr(model, "get_output_embeddings"):
        heads = [model.get_output_embeddings()]
        if heads == [None] and config.task_type == TaskType.SEQ_CLS:
            heads = [getattr(model, n, None) for n in CLASSIFIERS[TaskType.SEQ_CLS]]
    return {n for n, m in modules.items() if is_linear(m) and all(m is not head for head in heads)}


def is_excluded(config, saved, name) -> bool:
    skip = config.exclude_modules
    if isinstance(skip, str):
        skipped = re.fullmatch(skip, name) is not None
    else:
        skipped = _named(skip or (), name)
    return skipped or any(re.match(rf"(^|.*\.){m}($|\..*)", name) for m in saved)


def _named(names, name) -> bool:
    return name in names or any(name.endswith(f".{n}") for n in names)


def matches(wanted, config, name) -> bool:
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    if name in wanted:
        return True  # named in full: layers_to_transform does not apply
    return _named(wanted, name) and _in_layers(config, name)


def _in_layers(config, name) -> bool:
    layers = getattr(config, "layers_to_transform", None)
    if layers is None or layers == []:
        return True
    patterns = config.layers_pattern or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        prefix = r".*?\." if not config.layers_pattern else r"(?:^|.*?\.)"
        index = re.match(rf"{prefix}{pattern}\.(\d+)\.", name)
        if index:
            return int(index[1]) in ([layers] if isinstance(layers, int) else layers)
    return False


def ends_with(pattern, name) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", name) is not None


def _nothing_found(model, modules, config, excluded) -> str:
    wanted = f"target_modules={config.target_modules!r}"
    if excluded:
        return f"exclude_modules and modules_to_save leave nothing of what {wanted} matches: {', '.join(excluded)}"
    linear = sorted({n.rpartition(".")[2] for n, m in modules.items() if is_linear(m)})
    layers = getattr(config, "layers_to_transform", None)
    layers = "" if layers is None else f" in layers_to_transform={layers}"
    return (
        f"{wanted} matches no module of {type(model).__name__}{layers}; its linear layers are named "
        f"{', '.join(linear) or '(it has none)'}"
    )
