"""The bytes of a base model's weights, dense and in the formats of `quantize`."""

import math

from torch import nn

from pypeft_fast.model.quantize_model import layers_to_quantize

BLOCK, NESTED = 64, 256  # weights that share a scale, and scales that share a scale, as quantize_model makes them


def base_bytes(model: nn.Module, quantize: str | None) -> int:
    """The bytes of the parameters and buffers; a tensor with two names counts once.

    ValueError if the model has no layer to quantise.
    """
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    for name in layers_to_quantize(model) if quantize else ():
        weight = model.get_submodule(name).weight
        rows = model.get_submodule(name).weight.shape[0 if isinstance(model.get_submodule(name), nn.Linear) else 1]
        total += stored_bytes(quantize, rows, weight.numel()) - weight.numel() * weight.element_size()
    return total


def largest_layer(model: nn.Module) -> int:
    """The weights of the largest layer that is quantised."""
    return max((model.get_submodule(name).weight.numel() for name in layers_to_quantize(model)), default=0)


def stored_bytes(quantize: str, rows: int, weights: int) -> int:
    """The bytes of one weight of this many rows.

    int8: a byte a weight and a float32 scale a row. nf4: half a byte a weight, a byte a block of 64, a float32 a
    block of 256 scales, the table of the scales (256 float32), an offset and the table of the codes (16 float32).
    """
    if quantize == "int8":
        return weights + 4 * rows
    scales = math.ceil(weights / BLOCK)
    return math.ceil(weights / 2) + scales + 4 * math.ceil(scales / NESTED) + 4 * (256 + 1 + 16)
