"""Whether a call of an op may go past PyTorch's dispatcher, which takes as long as a small layer's arithmetic."""

import torch
from torch import is_grad_enabled
from torch._C import _are_functorch_transforms_active, _len_torch_dispatch_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling

PLAIN = (torch.Tensor, torch.nn.Parameter)


def needs_no_derivative() -> bool:
    """Whether this thread wants no derivative: of autograd, of forward mode, or of a transform of torch.func."""
    return not (is_grad_enabled() or forward_ad._current_level >= 0 or _are_functorch_transforms_active())


def may_pass_the_dispatcher(first) -> bool:
    """Whether a call with this first argument may go to a C++ kernel at once, because nothing else must see the op."""
    return (
        not is_compiling()
        and type(first) in PLAIN  # no tensor subclass
        and _len_torch_dispatch_stack() == 0  # no dispatch mode
        and needs_no_derivative()
    )
