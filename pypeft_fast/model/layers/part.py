"""Part: the contribution of one method to a frozen linear layer, and the layer's output computed from its parts.

    y = outputs * (product(inputs * x, W) + b)

Here product(x, W) is x W^T, plus the method's update if the method has one. A method is one subclass of Part, which
defines the contribution, how to read it from a PEFT layer, the merged weight, and the reasons why an adapter cannot be
fused. Only the file that maps PEFT's adapters to Parts names the subclass.
"""

import torch

from ...autograd.ia3 import ia3_linear
from ...frozen.operand import Frozen
from ...nn.frozen_linear import linear as frozen_linear
from ...ops._scale import scaled
from . import frozen_base, rules


class Part:
    """A method's contribution; the base class contributes nothing. A subclass overrides what its method contributes.

    inputs: [K], multiplies x. bias: [N], replaces the layer's own b. outputs: [N], multiplies y.
    linear(x, weight, bias, is_plain): x W^T + b plus the method's update. is_plain: the call is neither inside autocast
    nor inside torch.compile, so the checks of `why_not` need not be repeated.
    around(y, x): y, the frozen layer's own output for x, plus the method's update; None if the update needs the weight.
    """

    __slots__ = ()
    inputs = bias = outputs = linear = around = None

    @classmethod
    def read(cls, layer, name):
        """(facts, part) of an adapter at this call. The facts are hashable and the only input of the rules below."""
        raise NotImplementedError

    @staticmethod
    def why_not(found, is_loaded=True) -> str | None:
        """Why the adapter cannot be fused for any input, or None; is_loaded: whether meta tensors are an obstacle."""

    @staticmethod
    def why_not_beside(found, x) -> str | None:
        """Why the adapter cannot be fused for an input with facts x, or None."""

    @staticmethod
    def why_not_together(found, x) -> str | None:
        """Why the adapter cannot be fused together with other active adapters, or None."""
        return "several active adapters"

    @staticmethod
    def why_not_rows(adapters, x) -> str | None:
        """Why a call cannot be fused in which each row of x has one of these adapters or none, or None. adapters:
        [(method, facts)]."""
        return "adapter_names"

    def plus(self, others):
        """One part with the contribution of this part and the others, all accepted by `why_not_together`."""
        raise NotImplementedError

    def merged(self, total, frozen):
        """The weight [N, K] in float32 with this part merged, or None if PEFT's own merge must run.

        total: the weight with the earlier parts merged, which may be changed in place. frozen: the weight without any.
        """
        return None


def compute(parts, x, weight, bias, is_plain=False):
    """y [.., N] of x [.., K], the frozen weight [N, K] and bias [N] or None; differentiable.

    Over a quantised weight y has x's dtype, whatever the weight's compute dtype is.
    """
    part = parts[0] if len(parts) == 1 else _together(parts)
    if part.bias is not None:
        bias = part.bias
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
    """y [.., N] if the ops cannot read the frozen weight: calls the frozen layer, with its hooks, and adds the update.

    RuntimeError if x requires grad but the frozen layer's output does not: earlier layers would get a wrong gradient.
    """
    part = _together(parts)
    x = x if part.inputs is None else scaled(x, part.inputs)
    product = base(x)
    if x.requires_grad and torch.is_grad_enabled() and not product.requires_grad:
        raise RuntimeError(
            f"the base layer, a {type(base).__name__}, has returned a product without a gradient to its input, which "
            "earlier layers need; load the model again and keep it in train mode, or detach the input"
        )
    y = part.around(product, x)
    return y if part.outputs is None else scaled(y, part.outputs)


def why_not(base, x, adapters, by_row=False) -> tuple[str | None, bool]:
    """(why a call cannot be fused, or None; whether the ops can add the update to the frozen layer's own output).

    base: the facts from frozen_base.read. x: the input's facts. adapters: [(method, facts)] of the active adapters.
    by_row: whether each row of x has one of these adapters, or none. Meta tensors are an obstacle unless x is one too:
    then the ops' fakes give the shapes of a step, and the tensors that it keeps, of a model without memory.
    """
    is_loaded = len(x) == 1 or x[3].type != "meta"
    reason = frozen_base.why_not(base, is_loaded)
    is_around = reason is not None and not by_row and all(method.around is not None for method, _ in adapters)
    if is_around:
        further = frozen_base.why_not_called(base) or rules.why_not_plain(x)
        further = further or _why_not(x, adapters, by_row, is_loaded)
        return reason if further is None else further, further is None
    if reason is None:
        reason = frozen_base.why_not_input(base, x)
        reason = reason or _why_not(frozen_base.entering(base, x), adapters, by_row, is_loaded)
    return reason, False


def _why_not(x, adapters, by_row, is_loaded):
    reason = None
    for method, found in adapters:
        reason = reason or method.why_not(found, is_loaded) or method.why_not_beside(found, x)
    if by_row:
        return reason or adapters[0][0].why_not_rows(adapters, x)
    for method, found in adapters if len(adapters) > 1 else ():
        reason = reason or method.why_not_together(found, x)
    return reason
