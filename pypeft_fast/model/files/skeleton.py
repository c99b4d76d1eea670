"""A structural clone of a model: the same tensors in other modules, for PEFT to change without a trace."""

import contextlib
from collections import OrderedDict, defaultdict

import torch
from torch import nn


def skeleton(model: nn.Module) -> nn.Module:
    """A clone whose modules, hooks, containers and configs are its own, and whose tensors are the model's.

    A module that occurs twice is cloned once, so that ties stay ties. Weights take no memory.
    """
    return _copy(model, {})


@contextlib.contextmanager
def untouched(model: nn.Module):
    """Within the block PEFT may work on a skeleton; afterwards the parameters that it shares with the model have the
    requires_grad and the memory that they had, and the generator of random numbers its state."""
    before = [(p, p.requires_grad, p.data if type(p) is nn.Parameter else None) for p in model.parameters()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            for parameter, trains, data in before:
                parameter.requires_grad_(trains)
                if data is not None and parameter.data_ptr() != data.data_ptr():
                    parameter.data = data


@torch.no_grad()
def to_meta(clone: nn.Module) -> None:
    """Tensors of the clone become empty ones on the meta device: what is loaded into them has no effect anywhere."""
    for module in clone.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_empty(parameter), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _empty(buffer)


def _empty(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _copy(value, memo):
    """Modules, plain containers and transformers' configs are copied, each once; anything else is shared."""
    kind = type(value)
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule):  # that one lives in C++
        clone = memo[id(value)] = object.__new__(kind)
        clone.__dict__.update((name, _copy(item, memo)) for name, item in value.__dict__.items())
    elif kind in (dict, OrderedDict, defaultdict):
        clone = memo[id(value)] = defaultdict(value.default_factory) if kind is defaultdict else kind()
        clone.update((key, _copy(item, memo)) for key, item in value.items())
    elif kind is list:
        clone = memo[id(value)] = []
        clone.extend(_copy(item, memo) for item in value)
    elif kind in (tuple, set):
        clone = memo[id(value)] = kind(_copy(item, memo) for item in value)
    elif hasattr(kind, "model_type"):  # a config of transformers, into which PeftModel writes
        clone = memo[id(value)] = object.__new__(kind)
        clone.__dict__.update((name, _copy(item, memo)) for name, item in value.__dict__.items())
    else:
        clone = value
    return clone
