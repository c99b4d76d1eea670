"""The Autograd kernel of an op that is called without an autograd.Function: its gradient formula, or an error.

The functions of pypeft_fast/autograd call the ops below autograd. Other callers (torch.func under torch.compile, an
exported layer, a direct call) reach the kernel that is bound here to PyTorch's Autograd keys; without it PyTorch would
take every derivative as zero. Second derivatives and forward mode are not supported.
"""

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _flops


def needs_no_derivative() -> bool:
    """Whether this thread needs no derivative from autograd, forward mode or a torch.func transform."""
    return not (
        torch.is_grad_enabled() or forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    )


class Derivative:
    """The kernel for the Autograd keys of one op.

    formula(needs, grads, args, outputs): the gradients of the op's arguments, None where `needs` is false. grads are
    the gradients of the outputs, None where an output has none. All tensors are detached; the first output is not
    passed. Without a formula, a call that needs a gradient is an error.
    """

    def __init__(self, name, overload):
        self.name, self.overload = name, overload
        self.formula = None

    def __call__(self, keyset, *args):
        if torch._C._len_torch_dispatch_stack() > 0:  # dispatch modes, such as a FLOP counter, run after autograd
            _flops.tell_counters()
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            if self.formula is None:
                raise RuntimeError(
                    f"{self.name}: the op has no derivative, and pypeft_fast has no second derivatives; differentiate "
                    "pf.lora_linear, pf.dora_linear, pf.ia3_linear or pf.lora_gated_linear, once"
                )
            with enable_single_level_autograd_function():
                return _Call.apply(self, keyset, *_flat(args))
        if _has_tangent(args):
            raise RuntimeError(
                f"{self.name}: it has no forward-mode derivative, which torch.func.jvp and jacfwd ask for; take vjp or "
                "jacrev"
            )
        return self.below(keyset, args)

    def below(self, keyset, args):
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _has_tangent(args) -> bool:
    level = forward_ad._current_level
    if level < 0 or not torch._C._is_fwd_grad_enabled():
        return False
    floating = (a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point())
    return any(forward_ad.unpack_dual(a, level=level).tangent is not None for a in floating)


def _flat(args):
    """(length of the list at the end of the arguments, the arguments with that list flattened)."""
    if args and isinstance(args[-1], (list, tuple)):
        return len(args[-1]), *args[:-1], *args[-1]
    return 0, *args


def _nested(count, args):
    """The inverse of flattening: the last `count` arguments as a list again."""
    return (*args[: len(args) - count], list(args[len(args) - count :])) if count else args


# Not autograd.Function: torch.func calls an Autograd kernel once a level, and Function.apply would start at all levels.
class _Call(_SingleLevelFunction):
    @staticmethod
    def forward(ctx, derivative, keyset, count, *args):
        outputs = derivative.below(keyset, _nested(count, args))
        others = outputs[1:] if isinstance(outputs, tuple) else ()
        ctx.save_for_backward(*(a if isinstance(a, torch.Tensor) else None for a in args), *others)
        ctx.rest = tuple(None if isinstance(a, torch.Tensor) else a for a in args)
        ctx.derivative, ctx.count = derivative, count
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        if all(grad is None for grad in grads):
            return None, None, None, *(None for _ in ctx.rest)
        formula, needs = ctx.derivative.formula, ctx.needs_input_grad[3:]
        rest = ctx.count, ctx.rest
        return None, None, None, *_Gradients.apply(formula, needs, rest, len(grads), *grads, *ctx.saved_tensors)


class _Gradients(torch.autograd.Function):
    """The formula as a non-differentiable step: building its graph, as torch.func does, is not yet an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(formula, needs, rest, n, *tensors):
        count, rest = rest
        grads, given, others = tensors[:n], tensors[n : n + len(rest)], tensors[n + len(rest) :]
        args = tuple(value if tensor is None else tensor for tensor, value in zip(given, rest, strict=True))
        return formula(needs, grads, _nested(count, args), others)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("pypeft_fast has no second derivatives: its functions are once_differentiable")
