"""Checks `adapter_names` of a PeftModel's call and passes the names to the layers."""

import contextlib
import warnings

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..layers.fused_layer import FusedLayer
from . import rows
from .checkpointed_rows import keep_rows


def rows_of_call(model, names, args, kwargs):
    """A context in which the layers of this PeftModel apply to each row its own adapter; without names it is empty.

    In training mode a warning names the adapters that do not train. Raises TypeError if names is no list. Raises
    ValueError for an unknown adapter, and for a method that cannot apply different adapters to the rows of a batch.
    """
    if names is None or model._adapters_disabled:
        return contextlib.nullcontext()
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise TypeError(f"adapter_names={names!r} must be a list of names, one a row of the batch")
    others = [name for name in names if not isinstance(name, str)]
    if others:
        raise TypeError(f"adapter_names holds {others[0]!r}, which is no name; give {rows.BASE!r} for no adapter")
    unknown = sorted(set(names) - {*model.peft_config, rows.BASE})
    if unknown:
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; add or load them first")
    base = model.get_base_model()
    frozen = set(names) - {rows.BASE} if model.training and torch.is_grad_enabled() else set()
    for name, module, parents, is_wrapped in _reached(base):
        if isinstance(module, BaseTunerLayer):
            rows.mark(module, name, parents)
            frozen = {name for name in frozen if not _trains(module, name)}
        if not is_wrapped:  # a wrapper passes the names to the modules inside
            _prepare(module)
        if model.training:
            keep_rows(module)
    if frozen:
        warnings.warn(
            f"adapter_names: {', '.join(sorted(frozen))} get no gradients, since set_adapter has frozen them; "
            f"call model.set_adapter({sorted(set(names) - {rows.BASE})}) first to train them all",
            stacklevel=6,
        )
    # Without gradients the call has no backward pass, which could run a block again without the rows.
    during = rows.using if torch.is_grad_enabled() else rows.kept
    return during(rows.Rows(tuple(names), _expansion(base, kwargs), _is_matrix(args, kwargs)))


def _trains(layer, adapter) -> bool:
    """Whether a parameter that a tuner layer has of this adapter requires its gradient."""
    held = [getattr(layer, holder, {}) for holder in layer.adapter_layer_names]
    return any(
        parameter.requires_grad
        for holder in held
        if adapter in holder
        for parameter in (
            [holder[adapter]] if isinstance(holder[adapter], nn.Parameter) else holder[adapter].parameters()
        )
    )


def _reached(model):
    """(name, module, the modules around it, whether a wrapper of PEFT's is among them) of the user's own modules and of
    the tuner layers and wrappers in their places; not what these hold of their adapters, the most in number."""
    found, waiting = set(), [("", model, (), False)]
    while waiting:
        name, module, parents, is_wrapped = waiting.pop()
        if module in found:
            continue
        found.add(module)
        yield name, module, parents or (module,), is_wrapped
        children, around = module._modules, (*parents, module)
        if isinstance(module, BaseTunerLayer):
            children = {"base_layer": children.get("base_layer")}
        elif isinstance(module, AuxiliaryTrainingWrapper):
            children, is_wrapped = {"original_module": children.get("original_module")}, True
        for child, inner in children.items():
            if inner is not None:
                waiting.append((f"{name}.{child}" if name else child, inner, around, is_wrapped))


def _prepare(module) -> None:
    """Registers, once per layer of PEFT, a hook that reads the names from the call's context and passes them on."""
    kind = type(module)
    if isinstance(module, FusedLayer) or hasattr(kind, "by_rows"):
        return
    if isinstance(module, AuxiliaryTrainingWrapper) or hasattr(kind, "_mixed_batch_forward"):
        if not getattr(module, "_passes_rows", False):
            module.register_forward_pre_hook(_pass_rows, with_kwargs=True)
            module._passes_rows = True
    elif isinstance(module, BaseTunerLayer):
        raise ValueError(f"adapter_names: {kind.__name__} cannot apply another adapter to each row")


def _pass_rows(module, args, kwargs):
    found = rows.current()
    if found is None or not args:
        return None
    return args, kwargs | {"adapter_names": list(found.of(module, args[0]))}


def _expansion(base, kwargs) -> int:
    """How many rows generate makes of one prompt: the beams, or the sampled sequences; 1 for a plain forward."""
    if not rows.is_generating():
        return 1
    config = kwargs.get("generation_config") or getattr(base, "generation_config", None)
    asked = [kwargs.get(name, getattr(config, name, None)) for name in ("num_beams", "num_return_sequences")]
    return max([n for n in asked if isinstance(n, int)], default=1)


def _is_matrix(args, kwargs) -> bool:
    """Whether the model's own input is a matrix of features, one row per element of the batch."""
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
    return bool(tensors) and tensors[0].dim() == 2 and tensors[0].is_floating_point()
