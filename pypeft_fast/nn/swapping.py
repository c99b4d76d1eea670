"""What becomes of our layers in other modules: an error when a tool replaces one of them by its own linear layer and so
drops the adapter, or where PyTorch reads the weight of a linear layer instead of calling the layer.

torchao's float8 training and quantisation-aware training, Transformer Engine's converters and others replace every m
with isinstance(m, nn.Linear) by their own layer over m.weight and m.bias, which keeps only the frozen layer of a
LoRALinear. Our layers must stay subclasses of nn.Linear for other tools, so a module registration hook of PyTorch
checks each assignment. The hook does not see a tool that writes into `_modules`, nor one that is given the layer itself
and returns another.

In eval mode nn.TransformerEncoderLayer has a fast path that reads the weights of linear1 and linear2: an encoder layer
that gets one of our layers loses this path until all its modules are PyTorch's own again. nn.MultiheadAttention reads
the weight of out_proj in every mode.
"""

import functools

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

_PLAIN = torch.Tensor, nn.Parameter


@functools.cache
def watch(adapted) -> None:
    """Installs the hook, once per process. RuntimeError if a layer of class `adapted` loses its adapter, or would never
    be called."""

    def registered(parent, name, new):
        if isinstance(new, adapted):
            _check_is_called(parent, name, new)
        old = parent._modules.get(name)
        if isinstance(old, adapted) and new is not None and new is not old and not old.merged:
            if _drops_adapter(old, new, adapted):
                raise RuntimeError(
                    f"{type(parent).__name__}.{name}: a {type(new).__name__} takes the weight of the "
                    f"{type(old).__name__} in this place and drops its adapter ({old.extra_repr()}). Leave such layers "
                    "out of the replacement, or merge() them first, which puts the adapter into the weight and ends "
                    "its training; to drop the adapter, assign an nn.Identity() to this place first"
                )
        if "_fast_path" in vars(parent) and new is not None:
            _restore_fast_path(parent, name, new)

    register_module_module_registration_hook(registered)


def _check_is_called(parent, name, new) -> None:
    if isinstance(parent, nn.MultiheadAttention):
        raise RuntimeError(
            f"{type(parent).__name__}.{name}: nn.MultiheadAttention reads the weight of this layer and does not call "
            f"it, so a {type(new).__name__} here would do nothing; use an attention whose projections are called"
        )
    if isinstance(parent, nn.TransformerEncoderLayer):
        vars(parent).setdefault("_fast_path", (parent.activation_relu_or_gelu, parent.activation))
        parent.activation_relu_or_gelu = 0  # neither: the fast path knows no other activation


def _restore_fast_path(parent, name, new) -> None:
    """Gives an encoder layer its fast path back, if the path will then skip nothing: every module is PyTorch's own."""
    others = [child for key, child in parent._modules.items() if key != name and child is not None]
    modules = (module for child in (*others, new) for module in child.modules())
    if all(type(module).__module__.startswith("torch.nn.") for module in modules):
        kind, activation = vars(parent).pop("_fast_path")
        if parent.activation is activation:  # kind is that of this function
            parent.activation_relu_or_gelu = kind


def _drops_adapter(old, new, adapted) -> bool:
    """Whether `new` has the weight of `old`, but neither its adapter nor `old` itself."""
    if any(isinstance(module, adapted) for module in new.modules()):
        return False
    own = {id(p) for p in old.parameters() if p.requires_grad}
    return not any(id(p) in own for p in new.parameters()) and any(_same(old.weight, p) for p in new.parameters())


def _same(weight, other) -> bool:
    """Whether `other` is the same tensor, a view of it, or a copy."""
    if weight is other:
        return True
    if type(weight) not in _PLAIN or type(other) not in _PLAIN or weight.shape != other.shape:
        return False
    if weight.device != other.device or weight.is_meta or not other.is_floating_point():
        return False
    return weight.data_ptr() == other.data_ptr() or torch.equal(weight.to(other.dtype), other)
