"""Backward passes that have no derivative of their own, and say so whichever way one is asked for.

torch's once_differentiable cuts the graph instead: autograd.grad with allow_unused, autograd.functional.hessian and a
penalty on gradients beside another loss then get zeros without an error.
"""

import functools

import torch


def takes_a_function() -> bool:
    """Whether autograd records this thread, and an autograd.Function is what it should record.

    Under a transform of torch.func the ops stand for themselves (`Derivative`): those can be batched and transformed
    again. torch.compile traces the transform and the Function alike.
    """
    return torch.is_grad_enabled() and (
        torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active()
    )


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx, count, *tensors):
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("pypeft_fast has no second derivatives: its functions are once_differentiable")


def first_order(backward):
    """A Function's backward(ctx, saved, *grads): `saved` is ctx.saved_tensors, read once.

    Every reading unpacks them: checkpointing refuses a second, and one that moves them from a CPU would do it twice.
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
