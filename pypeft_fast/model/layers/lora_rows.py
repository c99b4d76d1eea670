"""LoRA where each row of a batch has an adapter of its own: one call of `multi_lora_linear` for a layer.

To read the facts of one adapter takes about five microseconds, and a batch may have an adapter for each row. So a layer
keeps what it has read, and looks at each call whether anything has changed since: in loops of C over the dictionaries
of modules.
"""

from collections import OrderedDict
from operator import is_

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..._native import all_hold
from ...autograd._scaling import scaling_into
from ...autograd.multi_lora import multi_lora_linear, multi_lora_linear_unchecked
from ...ops.adapter_table import AdapterTable
from .part import Part, why_not

_HOLDERS = ("lora_A", "lora_B", "lora_dropout")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_OF_LAYER = ("_modules", "scaling", "lora_variant", "cast_input_dtype_enabled")
_PLAIN = (dict, OrderedDict)  # whose subclasses may change what they are asked for
_ABSENT = object()


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
        self._modules, self._last_hook, self._hook_before = [], None, None
        self._holders = [layer._modules[holder] for holder in _HOLDERS]
        self._of_holders = list(map(vars, self._holders))
        self._layer = list(map(layer.__dict__.get, _OF_LAYER))  # not its dictionary, which leads to this object
        self._dicts, self._keys, self._values = [], [], []  # dicts[i].get(keys[i], _ABSENT) is values[i]
        self._keep(layer._modules, *_HOLDERS)
        dropouts = self._holders[-1]
        for holder, state in zip(self._holders, self._of_holders, strict=True):
            self._keep(state, "_modules")
            self._keep(holder._modules, *self.names)
            for module in map(holder._modules.get, self.names):
                self._keep(module.__dict__, "forward")
                if holder is not dropouts:
                    self._keep(module.__dict__, "_parameters")
                    self._keep(module._parameters, "weight", "bias")
                elif type(module) is nn.Dropout:
                    self._keep(module.__dict__, "training", "p", "inplace")
                self._modules.append(module)
        self._keep(layer.scaling, *self.names)
        self._keep(layer.lora_variant, *self.names)
        self._states = [module.__dict__ for module in self._modules]
        self._objects = [*self._modules, *self.A, *self.B]
        self._types = list(map(type, self._objects))
        self.table = AdapterTable(self.A, self.B, self.scalings, self.ps)
        tensors = [*self.A, *self.B]
        weights = [module._parameters.get("weight") for module in self._modules[: len(tensors)]]
        self.watches = (
            all(map(is_, weights, tensors))  # false for the plain tensors of FSDP
            and all(type(of) in _PLAIN for of in self._dicts)
        )
        return self.watches

    def _keep(self, of, *keys):
        self._dicts += [of] * len(keys)
        self._keys += keys
        self._values += [of.get(key, _ABSENT) for key in keys]

    def still_holds(self, layer) -> bool:
        """Whether the adapters are what they were: modules, hooks, parameters, dtypes, dropouts and scalings."""
        return (
            all(map(is_, map(layer.__dict__.get, _OF_LAYER), self._layer))
            and all(map(is_, map(vars, self._holders), self._of_holders))
            and self._has_no_hooks()
            and all_hold(self._dicts, self._keys, self._values, _ABSENT, self._objects, self._types)
            and self.table.holds()
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
            args = x, weight, bias, its.A, its.B, self.index, its.scalings, its.ps
            return multi_lora_linear_unchecked(*args, table=its.table)
        scaled = [scaling_into("multi_lora_linear", s, B) for s, B in zip(its.scalings, its.B, strict=True)]
        scalings, B = zip(*scaled, strict=True)
        options = dict(scalings=scalings, dropout_ps=its.ps)
        return multi_lora_linear(x, weight, its.A, B, self.index, bias, **options)
