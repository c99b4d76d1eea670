"""Part: the contribution of one method to a frozen linear layer, and the layer's output computed from its parts.

    y = outputs * (product(inputs * x, W) + b)

Here product(x, W) is x W^T, or that and a method's own update. A method is one class: what it contributes, how it is
read from a PEFT layer, what merging makes of the weight, and its own reasons why not. No other file knows it by name.
"""

import torch

from ...autograd.ia3 import ia3_linear
from ...frozen.operand import Frozen
from ...nn.frozen_linear import linear as frozen_linear
from ...ops._scale import scaled
from . import frozen_base, rules


class Part:
    """A method's contribution; this one contributes nothing. A method overrides what it has.

    inputs: [K], multiplies x. bias: [N], stands for the layer's own b. outputs: [N], multiplies y.
    linear(x, weight, bias, is_plain): x W^T + b with the method's update, where it has one. is_plain: neither autocast
    nor torch.compile is around the call, so that what `why_not` has checked need not be checked again.
    around(y, x): y, the frozen layer's own output for x, with the method's update, where that needs no weight.
    """

    __slots__ = ()
    inputs = bias = outputs = linear = around = None

    @classmethod
    def read(cls, layer, name):
        """(facts, the part) of an adapter as it is now: the facts, hashable, are all that the rules below look at."""
        raise NotImplementedError

    @staticmethod
    def why_not(found, is_loaded=True) -> str | None:
        """Why the adapter cannot be fused whatever the input is; is_loaded: whether its values must be there."""

    @staticmethod
    def why_not_beside(found, x) -> str | None:
        """Why the adapter cannot be fused with an input of these facts x, or None."""

    @staticmethod
    def why_not_together(found, x) -> str | None:
        """Why it cannot with other active adapters of the layer."""
        return "several active adapters"

    @staticmethod
    def why_not_rows(adapters, x) -> str | None:
        """Why several adapters, (method, facts) each, cannot where each row of x has one of them, or none."""
        return "adapter_names"

    def plus(self, others):
        """Combines this part and the others, which `why_not_together` has accepted, into one part."""
        raise NotImplementedError

    def merged(self, total, frozen):
        """The weight [N, K] in float32 with this part: total has the parts before it, and may be changed in place;
        frozen has none. Or None: PEFT's own merge computes it."""
        return None


def compute(parts, x, weight, bias, is_plain=False):
    """y [.., N] of x [.., K], the frozen weight [N, K] and bias [N] or None; differentiable. In x's dtype, whatever
    the dtype is that a quantised weight computes in."""
    part = _together(parts)
    bias = bias if part.bias is None else part.bias
    if type(weight) is Frozen:
        entering, bias = frozen_base.cast(x, weight, bias)
        return _product(part, entering, weight, bias, is_plain).to(x.dtype)
    return _product(part, x, weight, bias, is_plain)


def _together(parts):
    return parts[0] if len(parts) == 1 else parts[0].plus(parts[1:])


def _product(part, x, weight, bias, is_plain):
    linear, inputs, outputs = part.linear, part.inputs, part.outputs
    if linear is not None:
        y = linear(x if inputs is None else scaled(x, inputs), weight, bias, is_plain)
    elif inputs is not None:
        y = ia3_linear(x, weight, inputs, bias, feedforward=True)
    elif outputs is not None:
        return ia3_linear(x, weight, outputs, bias)
    else:
        return frozen_linear(x, weight, bias)
    return y if outputs is None else scaled(y, outputs)


def compute_around(parts, x, base):
    """y [.., N] if only the frozen layer itself can compute its product: the layer is called, with its hooks.

    RuntimeError if what it returns has no gradient to x though x needs one: the layers before it would train on
    nothing.
    """
    part = _together(parts)
    x = x if part.inputs is None else scaled(x, part.inputs)
    product = base(x)
    if x.requires_grad and torch.is_grad_enabled() and not product.requires_grad:
        raise RuntimeError(
            f"the base layer, a {type(base).__name__}, has returned a product without a gradient to its input, which "
            "the layers before it need; load the model anew and keep it in train mode, or detach the input"
        )
    y = part.around(product, x)
    return y if part.outputs is None else scaled(y, part.outputs)


def why_not(base, x, adapters, by_row=False) -> tuple[str | None, bool]:
    """(why a call cannot be fused, or None; whether the update alone can be, around the frozen layer), from facts.

    base: what frozen_base.read has found. x: the input's facts. adapters: (method, its facts) of each that is active.
    by_row: whether each row of x has one of them, or none.
    """
    reason = frozen_base.why_not(base)
    is_around = reason is not None and not by_row and all(method.around is not None for method, _ in adapters)
    if is_around:
        further = frozen_base.why_not_called(base) or rules.why_not_plain(x) or _why_not(x, adapters, by_row)
        return reason if further is None else further, further is None
    if reason is None:
        reason = frozen_base.why_not_input(base, x) or _why_not(frozen_base.entering(base, x), adapters, by_row)
    return reason, False


def _why_not(x, adapters, by_row):
    reason = None
    for method, found in adapters:
        reason = reason or method.why_not(found) or method.why_not_beside(found, x)
    if by_row:
        return reason or adapters[0][0].why_not_rows(adapters, x)
    for method, found in adapters if len(adapters) > 1 else ():
        reason = reason or method.why_not_together(found, x)
    return reason
