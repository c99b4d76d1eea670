"""What an op tells autograd where no autograd.Function stands before it: its gradients' formula, or that it has none.

The functions of pypeft_fast/autograd call the ops below autograd. Whoever comes past them (torch.func under
torch.compile, an exported layer, a direct call) meets the kernel that is bound here to PyTorch's Autograd keys; without
one PyTorch takes every derivative for zero. There are no second derivatives and no forward mode.
"""

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import _flops, _library


def bind_derivative(name, overload):
    """Binds a Derivative to the op's Autograd keys, and returns it."""
    derivative = Derivative(name, overload)
    _library.bind(name, "Autograd", derivative, with_keyset=True)
    return derivative


class Derivative:
    """The kernel for the Autograd keys of one op.

    formula(needs, grads, args, outputs): the gradients of the op's arguments, None where `needs` does not ask, from
    those of its outputs, None where an output has none, on detached tensors. The first of outputs is left out. Of a
    list of tensors `needs` and the result hold a list. Without a formula, a call that needs one is an error.
    """

    def __init__(self, name, overload):
        self.name, self.overload = name, overload
        self.formula = None

    def __call__(self, keyset, *args):
        if torch._C._len_torch_dispatch_stack() > 0:  # modes come after autograd: a counter of operations may be one
            _flops.tell_counters()
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            if self.formula is None:
                raise RuntimeError(
                    f"{self.name}: it has no derivative, and pypeft_fast no second derivatives; differentiate "
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
    """(of every argument None, or its length if it is a list of tensors; the arguments with such lists spread out)."""
    lengths = tuple(len(a) if is_tensor_list(a) else None for a in args)
    spread = []
    for length, arg in zip(lengths, args, strict=True):
        spread += [arg] if length is None else arg
    return lengths, *spread


def is_tensor_list(arg) -> bool:
    """Whether an argument is a list of tensors."""
    return isinstance(arg, (list, tuple)) and len(arg) > 0 and isinstance(arg[0], torch.Tensor)


def _spread(lengths, found):
    """The gradients of the arguments as those of the spread ones; None for a list is None for each of its tensors."""
    spread = []
    for length, grads in zip(lengths, found, strict=True):
        spread += [grads] if length is None else [None] * length if grads is None else grads
    return tuple(spread)


def _nested(lengths, spread):
    """What `_flat` spread out, with its lists."""
    rest = iter(spread)
    return tuple(next(rest) if n is None else [next(rest) for _ in range(n)] for n in lengths)


# Not autograd.Function: torch.func calls an Autograd kernel once a level, and Function.apply would start at all levels.
class _Call(_SingleLevelFunction):
    @staticmethod
    def forward(ctx, derivative, keyset, lengths, *args):
        outputs = derivative.below(keyset, _nested(lengths, args))
        others = outputs[1:] if isinstance(outputs, tuple) else ()
        ctx.save_for_backward(*(a if isinstance(a, torch.Tensor) else None for a in args), *others)
        ctx.rest = tuple(None if isinstance(a, torch.Tensor) else a for a in args)
        ctx.derivative, ctx.lengths = derivative, lengths
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        if all(grad is None for grad in grads):
            return None, None, None, *(None for _ in ctx.rest)
        formula, needs = ctx.derivative.formula, ctx.needs_input_grad[3:]
        rest = ctx.lengths, ctx.rest
        return None, None, None, *_Gradients.apply(formula, needs, rest, len(grads), *grads, *ctx.saved_tensors)


class _Gradients(torch.autograd.Function):
    """The formula as a step without a derivative: asking for a graph of it, as torch.func does, is no error yet."""

    generate_vmap_rule = True

    @staticmethod
    def forward(formula, needs, rest, n, *tensors):
        lengths, rest = rest
        grads, given, others = tensors[:n], tensors[n : n + len(rest)], tensors[n + len(rest) :]
        args = tuple(value if tensor is None else tensor for tensor, value in zip(given, rest, strict=True))
        found = formula(_nested(lengths, needs), grads, _nested(lengths, args), others)
        return _spread(lengths, found)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError("pypeft_fast has no second derivatives: its functions are once_differentiable")
