"""An error for what replaces every nn.Linear of a model by another class and would drop our layers' adapters.

torchao's float8 training and quantisation-aware training, Transformer Engine's converters and others ask isinstance(m,
nn.Linear), build their own layer from m.weight and m.bias, and assign it in m's place: of a LoRALinear that keeps the
frozen layer alone. Our layers stay nn.Linear, as every other tool expects, and the assignment is watched, by PyTorch's
hook for the registration of modules. It does not see a tool that writes into a module's `_modules` itself, nor one that
is handed the layer itself and returns another.
"""

import functools

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

_PLAIN = torch.Tensor, nn.Parameter


@functools.cache
def watch(adapted) -> None:
    """From now on, once a process: RuntimeError when a layer of the class `adapted` is replaced by its frozen part."""

    def registered(parent, name, new):
        old = parent._modules.get(name)
        if isinstance(old, adapted) and new is not None and new is not old and not old.merged:
            if _drops_adapter(old, new, adapted):
                raise RuntimeError(
                    f"{type(parent).__name__}.{name}: a {type(new).__name__} takes the weight of the "
                    f"{type(old).__name__} in this place and drops its adapter. Keep such layers from the tool (its "
                    "filter of modules), or merge() them first, which ends the adapter's training; to drop the "
                    "adapter, del the attribute before assigning"
                )

    register_module_module_registration_hook(registered)


def _drops_adapter(old, new, adapted) -> bool:
    """Whether `new` has old's weight, and neither an adapter nor old itself in it."""
    if any(isinstance(module, adapted) for module in new.modules()):
        return False
    own = {id(p) for p in old.parameters() if p.requires_grad}
    return not any(id(p) in own for p in new.parameters()) and any(_same(old.weight, p) for p in new.parameters())


def _same(weight, other) -> bool:
    """Whether it is the same tensor, a view of it, or a copy."""
    if weight is other:
        return True
    if type(weight) not in _PLAIN or type(other) not in _PLAIN or weight.shape != other.shape:
        return False
    if weight.device != other.device or weight.is_meta or not other.is_floating_point():
        return False
    return weight.data_ptr() == other.data_ptr() or torch.equal(weight.to(other.dtype), other)
