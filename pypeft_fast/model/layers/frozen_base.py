"""Reads the weight and bias of the frozen base layer, or says why they cannot be read. Only this file reads them.

To support a module that stores its weight in another way, read its tensors in `read` and add a rule to `why_not`; the
methods, the counters and the report need no change. A quantised module is read as a `Frozen`. Over a Linear4bit the ops
compute in compute_dtype, as the module does. Over a Linear8bitLt or FP8Linear the ops compute x W^T with the decoded
weight in the dtype of x, and do not quantise x. The output has the dtype of x, as with the modules' own forward.
"""

import torch
from torch import nn

from ...frozen.modules import is_conv1d
from ...frozen.operand import Frozen, is_stored
from ...frozen.quantized_modules import is_linear_4bit, is_quantized, quantized
from ...ops._check import ACTIVATIONS
from . import facts, rules

_NEVER_CALLED = nn.modules.linear.NonDynamicallyQuantizableLinear  # nn.MultiheadAttention only reads its weight


def read(base, x=None):
    """(found, weight [N, K] or a Frozen, bias [N] or None), for an input x.

    found: (facts of the module, of the weight, of the bias or None). If the weight cannot be read, found is (facts of
    the module,) or (facts of the module, the reason), and weight and bias are None.
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


def why_not(found, is_loaded=True) -> str | None:
    """Why the ops cannot use this base layer, from the facts of `read`; None if they can.

    The ops can use a linear layer with plain parameters of one dtype, and a quantised linear layer.
    is_loaded: whether meta tensors are an obstacle.
    """
    if len(found) < 3:
        return found[1] if len(found) == 2 else f"the base layer is a {found[0][0].__name__}"
    (_, is_hooked), weight, bias = found
    if is_hooked:
        return "the base layer has hooks or a forward of its own"
    reason = rules.why_not_tensor(weight, "the base weight", is_loaded)
    if reason is None and bias is not None:
        reason = rules.why_not_tensor(bias, "the base bias", is_loaded)
        if reason is None and bias[1] != weight[1] and weight[0] is not Frozen:
            reason = f"the base bias is {bias[1]} and its weight {weight[1]}"
    if reason is None and (len(weight[-1]) != 2 or bias is not None and len(bias[-1]) != 1):
        reason = "the base weight has no two dimensions: it is partitioned"
    return reason


def why_not_module(base) -> str | None:
    return why_not(read(base)[0])


def why_not_called(found) -> str | None:
    """Why an update cannot be added to the module's output, or None."""
    kind = found[0][0]
    return f"the base layer is a {kind.__name__}" if kind is _NEVER_CALLED else None


def why_not_input(found, x) -> str | None:
    """Why the ops cannot multiply an input with facts x by an accepted base weight; their dtypes must agree, as in
    nn.Linear."""
    if found[1][0] is Frozen and len(x) > 1 and x[1] not in ACTIVATIONS:
        return f"the input is {x[1]}"
    return rules.why_not_input(entering(found, x), found[1], found[1][-1][1])


def entering(found, x):
    """The facts of the input after `cast`: over a quantised weight the input gets the weight's dtype."""
    if found[1][0] is not Frozen or len(x) == 1:
        return x
    return x[0], found[1][1], *x[2:]


def cast(x, weight, bias):
    """x and the bias, cast to the dtype of a quantised weight; unchanged for a dense weight."""
    if not is_stored(weight):
        return x, bias
    return x.to(weight.dtype), None if bias is None else bias.to(weight.dtype)
