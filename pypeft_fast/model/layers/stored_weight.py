"""Reads, replaces and restores the tensors in which a frozen layer stores its weight, for merging."""

import torch

from ...frozen.operand import Frozen
from ...frozen.quantized_modules import is_linear_4bit, is_linear_8bit, is_quantized, quantized
from .facts import tensor_of

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weight_of(base) -> torch.Tensor | Frozen:
    """The weight as it is stored now."""
    return quantized(base) if is_quantized(base) else tensor_of(base, "weight").data


def _places(base):
    """For each tensor of the weight, in the order of the format: the attributes (object, name) that hold the tensor."""
    weight = tensor_of(base, "weight")
    if is_linear_4bit(base):
        state = weight.quant_state
        nested = [[(state.state2, "absmax")], [(state.state2, "code")], [(state, "offset")]] if state.nested else []
        return [[(weight, "data")], [(state, "absmax")], *nested]
    if is_linear_8bit(base):
        kept = [(holder, name) for name in ("CB", "SCB") for holder in (base.state, weight)]
        kept = [(holder, name) for holder, name in kept if getattr(holder, name) is not None]
        codes = [(weight, "data"), *(place for place in kept if place[1] == "CB")]
        return [codes, [place for place in kept if place[1] == "SCB"]]
    return [[(weight, "data")], [(base.weight_scale_inv, "data")]] if is_quantized(base) else [[(weight, "data")]]


def held(base) -> list:
    """[(object, name, tensor)] of every attribute that holds the weight. For a quantised weight also the parameter
    object, which PEFT's merging replaces."""
    own = [(base, "weight", base.weight)] if is_quantized(base) else []
    return own + [(holder, name, getattr(holder, name)) for places in _places(base) for holder, name in places]


def put_back(saved) -> None:
    """Restores the attributes that `held` returned."""
    for holder, name, tensor in saved:
        setattr(holder, name, tensor)


def store(base, weight) -> None:
    """Stores another weight of the same format in the layer: a tensor of the same dtype, or a Frozen."""
    tensors = weight.tensors if isinstance(weight, Frozen) else (weight,)
    for places, tensor in zip(_places(base), tensors, strict=True):
        for holder, name in places:
            before = getattr(holder, name)
            if tensor.dtype != before.dtype:  # a Linear4bit may store its codes in a tensor of a float dtype
                tensor = tensor.flatten().view(before.dtype) if tensor.dtype == torch.uint8 else tensor.to(before.dtype)
            setattr(holder, name, tensor.reshape(before.shape))


def bits(tensor):
    """A checksum over a tensor's bits, one per tensor of a Frozen; None for None.

    A checksum, because the version counter of a tensor does not count writes through `.data`.
    """
    if tensor is None:
        return None
    if isinstance(tensor, Frozen):
        return tuple(map(bits, tensor.tensors))
    return tensor.shape, int(tensor.detach().view(_INTEGERS[tensor.dtype.itemsize]).sum(dtype=torch.int64))
