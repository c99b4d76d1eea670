"""Reads the frozen layer under the adapters, or says why it cannot be read. No other file reads it.

A module that stores its weight in another way is accepted by reading its tensors in `read` and by its rule in
`why_not`: every method, the counters and the report follow. A quantised module is read as a `Frozen`. Linear4bit
computes in its compute_dtype, and so do the ops; Linear8bitLt and FP8Linear stand for x W^T with the decoded weight,
in the dtype of x, whose values are not quantised. What is returned has the dtype of x, as the modules have it.
"""

import torch
from torch import nn

from ...frozen.modules import is_conv1d
from ...frozen.operand import Frozen, is_stored
from ...frozen.quantized_modules import is_linear_4bit, is_quantized, quantized
from ...ops._check import ACTIVATIONS
from . import facts, rules

_READ_BY_ITS_PARENT = nn.modules.linear.NonDynamicallyQuantizableLinear  # nn.MultiheadAttention never calls it


def read(base, x=None):
    """(found, weight [N, K] or a Frozen, bias [N] or None), for an input x.

    found: the facts (of the module, of the weight, of the bias or None); or (of the module,), or (of the module, why
    its weight cannot be read), with None for weight and bias.
    """
    found, weight, bias = facts.of_linear(base)
    if found[0][0] is nn.Linear:
        return found, weight, bias
    if weight is None:
        return _read_quantized(base, x, found[0]) if is_quantized(base) else (found, None, None)
    if is_conv1d(base) and len(found[1]) > 1:
        weight = weight.t()
        found = found[0], facts.of_tensor(weight), found[2]
    return found, weight, bias


def _read_quantized(base, x, of_module):
    if is_linear_4bit(base) and getattr(getattr(base.weight, "quant_state", None), "packing_format_for_cpu", False):
        return (of_module, "the base weight is packed for bitsandbytes' own product"), None, None
    try:
        weight = quantized(base)
    except TypeError as error:
        return (of_module, str(error)), None, None
    is_set = is_linear_4bit(base) and base.compute_type_is_set
    if x is not None and not is_set and isinstance(x, torch.Tensor) and x.dtype in ACTIVATIONS:
        weight = weight.to(x.dtype)
    of_weight = Frozen, weight.dtype, torch.strided, weight.device, weight.shape
    bias = base.bias
    return (of_module, of_weight, None if bias is None else facts.of_tensor(bias)), weight, bias


def why_not(found) -> str | None:
    """From the facts that `read` has found: a linear layer with plain parameters of one dtype, or a quantised one."""
    if len(found) < 3:
        return found[1] if len(found) == 2 else f"the base layer is a {found[0][0].__name__}"
    (_, is_hooked), weight, bias = found
    if is_hooked:
        return "the base layer has hooks or a forward of its own"
    reason = rules.why_not_tensor(weight, "the base weight")
    if reason is None and bias is not None:
        reason = rules.why_not_tensor(bias, "the base bias")
        if reason is None and bias[1] != weight[1] and weight[0] is not Frozen:
            reason = f"the base bias is {bias[1]} and its weight {weight[1]}"
    if reason is None and (len(weight[-1]) != 2 or bias is not None and len(bias[-1]) != 1):
        reason = "the base weight has no two dimensions: it is partitioned"
    return reason


def why_not_module(base) -> str | None:
    return why_not(read(base)[0])


def why_not_called(found) -> str | None:
    """Why an update cannot be added to what the module returns."""
    kind = found[0][0]
    return f"the base layer is a {kind.__name__}" if kind is _READ_BY_ITS_PARENT else None


def why_not_input(found, x) -> str | None:
    """The input, of which x are the facts, beside a base that is accepted: they meet in one dtype, as in nn.Linear."""
    if found[1][0] is Frozen and len(x) > 1 and x[1] not in ACTIVATIONS:
        return f"the input is {x[1]}"
    return rules.why_not_input(entering(found, x), found[1], found[1][-1][1])


def entering(found, x):
    """The facts of the input as the product gets it: a quantised weight tells the dtype."""
    if found[1][0] is not Frozen or len(x) == 1:
        return x
    return x[0], found[1][1], *x[2:]


def cast(x, weight, bias):
    """x and the bias as a product with this weight takes them."""
    if not is_stored(weight):
        return x, bias
    return x.to(weight.dtype), None if bias is None else bias.to(weight.dtype)
