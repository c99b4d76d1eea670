"""Checks of get_peft_model and add_adapter, before and after PEFT adds an adapter to a model."""

import difflib
import functools
import inspect
import re
import warnings

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .files import check_adapter_name
from .tuners.bitfit_layer import BitFitLayer

# For these tasks PEFT adds the head to modules_to_save only after "all-linear" has adapted the head, and then raises an
# error with the model half changed. For SEQ_CLS PEFT adds the head before.
_HEADS = {"TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}


def name_head(config) -> None:
    """Adds a task's head to modules_to_save before PEFT does, so that PEFT does not adapt the head."""
    heads = _HEADS.get(config.task_type)
    if heads and hasattr(config, "modules_to_save"):
        config.modules_to_save = list(dict.fromkeys([*(config.modules_to_save or ()), *heads]))


def check_before(model, config, adapter_name) -> None:
    """ValueError, before any change, if adapter_name is not valid or a module in modules_to_save would not train.

    PEFT replaces each module that matches a name in modules_to_save by a copy. With tied weights the model may compute
    with a module of another name, as T5 does with embed_tokens of encoder and decoder instead of `shared`. Then the
    copy would never train.
    """
    check_adapter_name(adapter_name)
    wanted = tuple(getattr(config, "modules_to_save", None) or ())
    if not wanted:
        return
    modules, holders = {}, {}  # {name: module}, {id of a module or weight: {name of each module that is or has it}}
    for name, module in model.named_modules(remove_duplicate=False):
        modules[name] = module
        for held in (module, *module._parameters.values()):
            if held is not None:
                holders.setdefault(id(held), {})[name] = None
    for saved, module in modules.items():
        if not saved.endswith(wanted):
            continue
        weights = [p for p in module._parameters.values() if p is not None]
        same = {name for held in (module, *weights) for name in holders[id(held)]}
        others = [name for name in same if not name.endswith(wanted)]
        used = [name for name in same if name.endswith(wanted) and _is_used(modules, name)]
        if others and (not used or any(modules[name] is module for name in others)):
            raise ValueError(
                f"modules_to_save={list(wanted)}: instead of {saved} the model computes with "
                f"{', '.join(sorted(others))}, which would stay frozen; add these names too (each gets a copy of its "
                "own), or train tokens with trainable_token_indices"
            )


def _is_used(modules, name) -> bool:
    """Whether the source of the parent's forward names the module; True if the source is not available."""
    parent, _, child = name.rpartition(".")
    forward = _source_of(type(modules[parent]).forward)
    return forward is None or re.search(rf"\bself\.{child}\b", forward) is not None


def warn_after(model, config, adapter_name) -> None:
    """Warns about a target that matches no module, and about adapted layers that the model's code never calls."""
    names = [name for name, _ in model.named_modules() if name]
    wanted = getattr(config, "target_modules", None)
    for target in sorted(wanted) if isinstance(wanted, (set, list, tuple)) else ():
        if not any(name == target or name.endswith(f".{target}") for name in names):
            warnings.warn(_unmatched(model, names, target), stacklevel=3)
    not_called = read_not_called(model, adapter_name)
    if not_called:
        name, how = next(iter(not_called.items()))
        warnings.warn(
            f"{len(not_called)} adapter layers may have no effect, because the model reads their weight instead of "
            f"calling them: {name}, in {how}; target another module, such as the nn.MultiheadAttention itself",
            stacklevel=3,
        )


def _unmatched(model, names, target) -> str:
    text = f"target_modules: {target!r} matches no module and stays frozen"
    parameters = [name for name, _ in model.named_parameters() if name.endswith(f".{target}")]
    if parameters:
        return f"{text}; it is a parameter, {parameters[0]}: name it in target_parameters"
    close = difflib.get_close_matches(target, sorted({name.rpartition(".")[2] for name in names}), n=1)
    return f"{text}; did you mean {close[0]!r}?" if close else f"{text}; parameters go into target_parameters"


def read_not_called(model, adapter_name) -> dict[str, str]:
    """{name of a layer of this adapter: the class whose code computes with the layer's weight and never calls it}.

    BitFit's layers are not listed, since their bias can be read. Modules inside of a PEFT layer are not listed either,
    since that layer may merge into them.
    """
    around = dict(model.named_modules())
    found = {}
    for name, module in around.items():
        if not isinstance(module, BaseTunerLayer) or isinstance(module, BitFitLayer) or ".base_layer." in f".{name}":
            continue
        parent, _, child = name.rpartition(".")
        kind = type(around[parent])
        if adapter_name in module._get_available_adapters() and child in _weights_read(kind):
            found[name] = kind.__name__
    return found


@functools.cache
def _weights_read(kind) -> frozenset[str]:
    """Names of submodules whose `.weight` the class's methods compute with, and which the methods name nowhere else.

    A name without `.weight` may lead to a call: checkpoint(self.fc, x), or a loop over (self.fc1, self.fc2).
    """
    source = ""
    for base in kind.__mro__:
        if base is nn.Module or not issubclass(base, nn.Module):
            continue
        methods = (f for n, f in vars(base).items() if inspect.isfunction(f) and n not in _INITIALISERS)
        source += "\n".join(_source_of(method) or "" for method in methods)
    attribute = r"(?!\w|\.(?:data|dtype|device|shape|size|dim|ndim|requires_grad|data_ptr|is_\w+)\b)"
    read = set(re.findall(rf"\bself\.(\w+)\.weight{attribute}", source))
    return frozenset(name for name in read if not re.search(rf"\bself\.{name}\b(?!\.)", source))


_INITIALISERS = ("__init__", "_init_weights", "init_weights", "reset_parameters", "_reset_parameters")


@functools.cache
def _source_of(function) -> str | None:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):  # the source is not available
        return None
