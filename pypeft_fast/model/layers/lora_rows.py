"""LoRA where each row of a batch has an adapter of its own: one call of `multi_lora_linear` for a layer.

To read the facts of one adapter takes about five microseconds, and a batch may have an adapter for each row. So a layer
keeps what it has read, and looks at each call whether anything has changed since: in loops of C over modules'
dictionaries, in less than a microsecond an adapter.
"""

from itertools import repeat
from operator import contains, is_, is_not, itemgetter

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...autograd._scaling import scaling_into
from ...autograd.multi_lora import multi_lora_linear, multi_lora_linear_unchecked
from .part import Part, why_not

_HOLDERS = ("lora_A", "lora_B", "lora_dropout")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DTYPE = torch.Tensor.dtype.__get__
_of_dropout = itemgetter("training", "p", "inplace")


class RowAdapters:
    """A layer's adapters of these names, beside a base and an input of these facts, and whether they still hold.

    reason: why they cannot be fused, or None; then A, B, scalings and ps are of each, as multi_lora_linear takes them.
    """

    def __init__(self, layer, names, base, x):
        self.names, self.beside, self.watches = names, (base, x), False
        kinds = [layer.method(layer, name) for name in names]
        found, parts = zip(*(kind.read(layer, name) for kind, name in zip(kinds, names, strict=True)), strict=True)
        self.reason, _ = why_not(base, x, list(zip(kinds, found, strict=True)), by_row=True)
        if self.reason is None:
            self.A, self.B = [part.A for part in parts], [part.B for part in parts]
            self.scalings, self.ps = [part.scaling for part in parts], [float(part.p) for part in parts]

    def watch(self, layer) -> bool:
        """Keeps what `still_holds` compares; False if that is not enough, as for a scaling that is a tensor."""
        if not all(type(scaling) in (float, int) for scaling in self.scalings):
            return False
        self._casts = layer.cast_input_dtype_enabled
        self._modules = [list(map(layer._modules[holder]._modules.get, self.names)) for holder in _HOLDERS]
        every = [module for modules in self._modules for module in modules]
        linears = [module._parameters for modules in self._modules[:2] for module in modules]
        self._every, self._types = every, list(map(type, every))
        self._states = [module.__dict__ for module in every]
        self._forwards = [state.get("forward") for state in self._states]
        self._last_hook = self._hook_before = None
        self._linears, self._tensors = linears, [*self.A, *self.B]
        self._dtypes, self._kinds = list(map(_DTYPE, self._tensors)), list(map(type, self._tensors))
        self._dropouts = [module.__dict__ for module in self._modules[2] if type(module) is nn.Dropout]
        self._rates = list(map(_of_dropout, self._dropouts))
        self.watches = True
        return True

    def still_holds(self, layer) -> bool:
        """Whether the adapters are what they were: modules, hooks, parameters, dtypes, dropouts and scalings."""
        held = layer._modules
        return (
            all(
                list(map(held[holder]._modules.get, self.names)) == modules
                for holder, modules in zip(_HOLDERS, self._modules, strict=True)
            )
            and self._has_no_hooks()
            and all(map(is_, map(dict.get, self._states, repeat("forward")), self._forwards))
            and list(map(type, self._every)) == self._types
            and all(map(is_, map(dict.get, self._linears, repeat("weight")), self._tensors))
            and not any(map(is_not, map(dict.get, self._linears, repeat("bias")), repeat(None)))
            and list(map(_DTYPE, self._tensors)) == self._dtypes
            and list(map(type, self._tensors)) == self._kinds
            and list(map(_of_dropout, self._dropouts)) == self._rates
            and all(map(is_, map(layer.scaling.get, self.names), self.scalings))
            and layer.cast_input_dtype_enabled == self._casts
            and not (layer.lora_variant and any(map(contains, repeat(layer.lora_variant), self.names)))
        )

    def _has_no_hooks(self) -> bool:
        """PyTorch counts the hooks that are registered anywhere: while it has counted none, there is none here.

        PyTorch counts a hook before it inserts the hook, so a count holds from the second call that sees it on.
        """
        last = RemovableHandle.next_id
        if last != self._last_hook:
            if any(state[name] for state in self._states for name in _HOOKS):
                return False
            self._last_hook = last if last == self._hook_before else None
            self._hook_before = last
        return True


class LoRARows(Part):
    """y_m = W x_m + b + scaling_a * B_a A_a drop_a(x_m), a = index[m] the adapter of row m, or -1: none."""

    __slots__ = ("adapters", "index")

    def __init__(self, adapters, index):
        self.adapters, self.index = adapters, index

    def linear(self, x, weight, bias, is_plain):
        its = self.adapters
        if is_plain and its.watches:
            return multi_lora_linear_unchecked(x, weight, bias, its.A, its.B, self.index, its.scalings, its.ps)
        scaled = [scaling_into("multi_lora_linear", s, B) for s, B in zip(its.scalings, its.B, strict=True)]
        scalings, B = zip(*scaled, strict=True)
        options = dict(scalings=scalings, dropout_ps=its.ps)
        return multi_lora_linear(x, weight, its.A, B, self.index, bias, **options)
