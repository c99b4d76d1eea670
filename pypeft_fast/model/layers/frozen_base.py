"""The frozen layer under the adapters: read here and nowhere else, with the reasons why it cannot be read.

A module that stores its weight in another way (quantised, say) is accepted by reading its tensors in `read` and by its
rule in `why_not`: every method, the counters and the report follow.
"""

from torch import nn

from ...frozen.modules import is_conv1d
from . import facts, rules


def read(base):
    """((the facts of a linear layer, whether it stores W^T), weight [N, K], bias [N] or None); None for no weight."""
    found, weight, bias = facts.of_linear(base)
    transposed = type(base) is not nn.Linear and is_conv1d(base)
    if transposed and len(found[1]) > 1:
        weight = weight.t()
    return (found, transposed), weight, bias


def why_not(found) -> str | None:
    """From the facts that `read` has found: a plain linear layer, with plain parameters of one dtype."""
    ((kind, is_hooked), *parameters), _ = found
    if not parameters:
        return f"the base layer is a {kind.__name__}"
    if is_hooked:
        return "the base layer has hooks or a forward of its own"
    weight, bias = parameters
    reason = rules.why_not_tensor(weight, "the base weight")
    if reason is None and bias is not None:
        reason = rules.why_not_tensor(bias, "the base bias")
        if reason is None and bias[1] != weight[1]:
            reason = f"the base bias is {bias[1]} and its weight {weight[1]}"
    if reason is None and (len(weight[-1]) != 2 or bias is not None and len(bias[-1]) != 1):
        reason = "the base weight has no two dimensions: it is partitioned"
    return reason


def why_not_module(base) -> str | None:
    return why_not(read(base)[0])


def why_not_input(found, x) -> str | None:
    """The input, of which x are the facts, beside a base that is accepted: they meet in one dtype, as in nn.Linear."""
    (_, weight, _), transposed = found
    return rules.why_not_input(x, weight, weight[-1][0 if transposed else 1])
