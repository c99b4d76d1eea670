"""What get_peft_model and add_adapter look at before PEFT puts an adapter on a model, and after."""

import difflib
import functools
import inspect
import re
import warnings

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .files import check_adapter_name
from .tuners.bitfit_layer import BitFitLayer

# PEFT names the head to save only after all-linear has adapted it, and fails half way. For SEQ_CLS it does so before.
_HEADS = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def name_head(config) -> None:
    """Puts a task's head among modules_to_save, as PEFT does afterwards, so that it is not among the targets."""
    heads = _HEADS.get(config.task_type)
    if heads and hasattr(config, "modules_to_save"):
        config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *heads]))


def check_before(model, config, adapter_name) -> None:
    """ValueError, before anything is changed: a name that cannot name an adapter, a module to save that lives on.

    PEFT replaces a module to save at the names that match, by a copy. Where the model computes with another module that
    is the same one or holds the same weight, as T5 does with its encoder's and decoder's embed_tokens in the place of
    `shared`, the copy would train nothing.
    """
    check_adapter_name(adapter_name)
    wanted = tuple(getattr(config, "modules_to_save", None) or ())
    named = list(model.named_modules(remove_duplicate=False)) if wanted else []
    modules = dict(named)
    for saved, module in named:
        if not saved.endswith(wanted):
            continue
        weights = {id(p) for p in module.parameters(recurse=False)}
        same = [(n, m) for n, m in named if m is module or any(id(p) in weights for p in m.parameters(recurse=False))]
        others = [name for name, _ in same if not name.endswith(wanted)]
        used = [name for name, _ in same if name.endswith(wanted) and _is_called(modules, name)]
        if others and (not used or any(other is module for name, other in same if name in others)):
            raise ValueError(
                f"modules_to_save={list(wanted)}: the model computes with {', '.join(others)}, which would stay "
                f"frozen, instead of {saved}; name those too (each becomes a copy of its own), or train tokens with "
                "trainable_token_indices"
            )


def _is_called(modules, name) -> bool:
    parent, _, child = name.rpartition(".")
    return child in _calls(type(modules[parent]))


def warn_after(model, config) -> None:
    """Warns of a target that matches no module, and of adapters that the model's code passes by."""
    names = [name for name, _ in model.named_modules() if name]
    wanted = getattr(config, "target_modules", None)
    for target in sorted(wanted) if isinstance(wanted, (set, list, tuple)) else ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            warnings.warn(_unmatched(model, names, target), stacklevel=3)
    passed_by = {name: how for name, how in read_not_called(model).items() if how is not None}
    if passed_by:
        name, how = next(iter(passed_by.items()))
        warnings.warn(
            f"{len(passed_by)} adapter layers are without effect where the model reads their weight instead of calling "
            f"them: {name}, in {how}; target another module, such as the nn.MultiheadAttention itself",
            stacklevel=3,
        )


def _unmatched(model, names, target) -> str:
    text = f"target_modules: {target!r} matches no module and stays frozen"
    parameters = [name for name, _ in model.named_parameters() if name.endswith(f".{target}")]
    if parameters:
        return f"{text}; it is a parameter, {parameters[0]}: name it in target_parameters"
    close = difflib.get_close_matches(target, sorted({name.rpartition(".")[2] for name in names}), n=1)
    return f"{text}; did you mean {close[0]!r}?" if close else f"{text}; parameters go into target_parameters"


def read_not_called(model) -> dict[str, str | None]:
    """{name of an adapter layer: the class whose code reads its weight, None if that class only calls it}."""
    around = dict(model.named_modules())
    found = {}
    for name, module in around.items():
        if isinstance(module, BaseTunerLayer) and not isinstance(module, BitFitLayer):  # whose bias may be read
            parent, _, child = name.rpartition(".")
            kind = type(around[parent])
            found[name] = kind.__name__ if child in _weights_read(kind) else None
    return found


def _weights_read(kind) -> set[str]:
    """Names of submodules whose weight the class's code computes with, and which it never calls."""
    attribute = r"(?!\w|\.(?:dtype|device|shape|size|dim|ndim|requires_grad|data_ptr|is_\w+)\b)"
    return set(re.findall(rf"\bself\.(\w+)\.weight{attribute}", _source(kind))) - _calls(kind)


def _calls(kind) -> set[str]:
    """Names of submodules that the class's code calls."""
    return set(re.findall(r"\bself\.(\w+)\(", _source(kind)))


@functools.cache
def _source(kind) -> str:
    """Of a module's class and the classes under it; empty where there is no source at hand."""
    source = ""
    for base in kind.__mro__:
        if base is not nn.Module and issubclass(base, nn.Module):
            try:
                source += inspect.getsource(base)
            except (OSError, TypeError):
                return ""
    return source
