"""Part: what one method adds to a frozen linear layer, and the layer's output from such parts.

    y = outputs * (product(inputs * x, W) + b)

Here product(x, W) is x W^T, or that and a method's own update. A method is one class: what it contributes, how it is
read from a PEFT layer, what merging makes of the weight, and its own reasons why not. No other file knows it by name.
"""

import torch.nn.functional as F

from ...autograd.ia3 import ia3_linear
from ...ops._scale import scaled
from . import frozen_base


class Part:
    """A method's contribution; this one contributes nothing. A method overrides what it has.

    inputs: [K], multiplies x. bias: [N], stands for the layer's own b. outputs: [N], multiplies y.
    linear(x, weight, bias, is_plain): x W^T + b with the method's update, where it has one. is_plain: neither autocast
    nor torch.compile is around the call, so that what `why_not` has checked need not be checked again.
    """

    __slots__ = ()
    inputs = bias = outputs = linear = None

    @classmethod
    def read(cls, layer, name):
        """(facts, the part) of an adapter as it is now: the facts, hashable, are all that the rules below look at."""
        raise NotImplementedError

    @staticmethod
    def why_not(found, is_loaded=True) -> str | None:
        """Why the adapter cannot be fused whatever the input is; is_loaded: whether its values must be there."""

    @staticmethod
    def why_not_beside(found, x) -> str | None:
        """Why it cannot beside this input, of which x are the facts."""

    @staticmethod
    def why_not_together(found, x, by_row) -> str | None:
        """Why it cannot with other active adapters of the layer, or by_row: where each row has one of them, or none."""
        return "adapter_names" if by_row else "several active adapters"

    def plus(self, others):
        """One part of this and the others, which `why_not_together` has let pass."""
        raise NotImplementedError

    def merged(self, total, frozen):
        """The weight [N, K] in float32 with this part: total has the parts before it, and may be changed in place;
        frozen has none. Or None: PEFT's own merge computes it."""
        return None


def compute(parts, x, weight, bias, is_plain=False):
    """y [.., N] of x [.., K], the frozen weight [N, K] and bias [N] or None; differentiable."""
    part = parts[0]
    if len(parts) > 1:
        part = part.plus(parts[1:])
    linear, inputs, bias = part.linear, part.inputs, bias if part.bias is None else part.bias
    if linear is not None:
        y = linear(x if inputs is None else scaled(x, inputs), weight, bias, is_plain)
    elif inputs is not None:
        y = ia3_linear(x, weight, inputs, bias, feedforward=True)
    else:
        return F.linear(x, weight, bias) if part.outputs is None else ia3_linear(x, weight, part.outputs, bias)
    return y if part.outputs is None else scaled(y, part.outputs)


def why_not(base, x, adapters, by_row) -> str | None:
    """Why a call runs in PEFT's forward, or None, from facts alone.

    base: what frozen_base.read has found. x: the input's facts. adapters: (method, its facts) of each that is active.
    """
    reason = frozen_base.why_not(base) or frozen_base.why_not_input(base, x)
    for method, found in adapters:
        reason = reason or method.why_not(found) or method.why_not_beside(found, x)
    for method, found in adapters if by_row or len(adapters) > 1 else ():
        reason = reason or method.why_not_together(found, x, by_row)
    return reason
