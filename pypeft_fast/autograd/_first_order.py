"""Backward passes that raise an error on every request for a second derivative.

torch's once_differentiable detaches the graph instead: autograd.grad with allow_unused, autograd.functional.hessian
and a gradient penalty added to another loss then get zeros without an error.
"""

import functools

import torch
from torch import is_grad_enabled
from torch._C import _are_functorch_transforms_active
from torch.compiler import is_compiling


def takes_a_function() -> bool:
    """Whether autograd records in this thread and should record an autograd.Function.

    Under a torch.func transform autograd records the ops themselves (`Derivative`), which vmap and further transforms
    accept. torch.compile traces both the transform and the Function.
    """
    return is_grad_enabled() and (is_compiling() or not _are_functorch_transforms_active())


def apply_of(function):
    """The `apply` of an autograd.Function, for callers to whom `takes_a_function` has said yes.

    In eager mode that of the C++ base class: torch's own in Python looks for transforms once more, which takes 3
    microseconds, and several times as long when a large product has emptied the caches.
    """
    return function.apply if is_compiling() else super(torch.autograd.Function, function).apply


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("pypeft_fast has no second derivatives: its functions are once_differentiable")


def first_order(backward):
    """A Function's backward(ctx, saved, *grads): `saved` is ctx.saved_tensors, read once.

    Each read runs the unpack hooks: checkpointing refuses a second read, and CPU offloading would copy twice.
    """

    @functools.wraps(backward)
    def wrapped(ctx, *grads):
        saved = ctx.saved_tensors
        if not torch.is_grad_enabled():  # no create_graph
            return backward(ctx, saved, *grads)
        with torch.no_grad():
            outputs = backward(ctx, saved, *grads)
        depends = [t for t in (*grads, *saved) if t is not None and t.requires_grad]
        found = [i for i, t in enumerate(outputs) if t is not None]
        if not depends or not found:
            return outputs
        outputs = list(outputs)
        refused = _Refused.apply(len(found), *(outputs[i] for i in found), *depends)
        for i, t in zip(found, refused, strict=True):
            outputs[i] = t
        return tuple(outputs)

    return wrapped
