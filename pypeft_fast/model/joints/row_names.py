"""Checks `adapter_names` of a PeftModel's call and passes the names to the layers."""

import contextlib

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from ..layers.fused_layer import FusedLayer
from . import rows


def rows_of_call(model, names, args, kwargs):
    """A context in which the layers of this PeftModel apply to each row its own adapter; without names it is empty.

    Raises TypeError if names is no list. Raises ValueError in training mode, for an unknown adapter, and for a method
    that cannot apply different adapters to the rows of a batch.
    """
    if names is None or model._adapters_disabled:
        return contextlib.nullcontext()
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise TypeError(f"adapter_names={names!r} must be a list of names, one a row of the batch")
    if model.training:
        raise ValueError("Cannot pass `adapter_names` when the model is in training mode; call model.eval() first")
    unknown = sorted(set(names) - {*model.peft_config, rows.BASE})
    if unknown:
        raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}; add or load them first")
    base = model.get_base_model()
    rows.mark(base, BaseTunerLayer)
    modules = list(base.modules())
    wrapped = {
        inner for m in modules if isinstance(m, AuxiliaryTrainingWrapper) for inner in m.modules() if inner is not m
    }
    for module in modules:
        if module not in wrapped:  # a wrapper passes the names to the modules inside
            _prepare(module)
    return rows.using(rows.Rows(tuple(names), _expansion(base, kwargs), _is_matrix(args, kwargs)))


def _prepare(module) -> None:
    """Registers, once per layer of PEFT, a hook that reads the names from the call's context and passes them on."""
    if isinstance(module, FusedLayer) or hasattr(module, "by_rows"):
        return
    if isinstance(module, AuxiliaryTrainingWrapper) or hasattr(module, "_mixed_batch_forward"):
        if not getattr(module, "_passes_rows", False):
            module.register_forward_pre_hook(_pass_rows, with_kwargs=True)
            module._passes_rows = True
    elif isinstance(module, BaseTunerLayer):
        raise ValueError(f"adapter_names: {type(module).__name__} cannot apply another adapter to each row")


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
