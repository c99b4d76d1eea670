"""FusedLayer: a PEFT layer that runs on the fused ops, for every method of adapter.

Fusing sets the class of an existing layer to a subclass with FusedLayer as first base; unfusing restores the class.
Parameters, names and state dict do not change, and everything but forward and merging is inherited. A call that the ops
do not support runs in PEFT's own forward, and a counter records the reason. The computation, the reasons and the report
use one description of a layer: the facts and the parts of the frozen base and of the adapters (part.py).
"""

from collections import Counter

import torch
from torch.compiler import is_compiling, is_dynamo_compiling
from torch.nn import ModuleDict

from ...frozen.modules import is_conv1d
from ...frozen.operand import Frozen
from ...frozen.quantized_modules import is_quantized
from ..joints import rows as rows_of_batch
from . import frozen_base
from .exact_merge import ExactMerge, in_float32
from .facts import of_input
from .lossy_merge import requantized
from .part import Part, compute, compute_around, why_not
from .rules import why_not_called, why_not_now
from .swapped_class import set_class, why_not_forward
from .switching import Marked

# Keys of a layer's counter: calls on the ops; and, followed by the reason, calls where the frozen layer's own forward
# ran and the ops added the update. Any other key is the reason why PEFT's forward ran.
FUSED, AROUND = "fused", "fused around the base: "


class CallCache:
    """Caches of a layer; copying and pickling empty them.

    last: the facts of the last call and the rules' answer. rows: {names: the RowAdapters of a call with adapter_names}.
    was_of_rows: whether the last call had adapter_names.
    """

    __slots__ = ("last", "rows", "was_of_rows")

    def __init__(self):
        self.last, self.rows, self.was_of_rows = (None, (None, False)), {}, False

    def __reduce__(self):
        return CallCache, ()


class FusedLayer(Marked, ExactMerge):
    """The first base class of a fused layer; the second base is the PEFT class, `peft_class`.

    A subclass defines `holder` and `method`. PEFT looks for "Linear" in the class names of tuner layers, so the name of
    a subclass contains "Linear".
    """

    peft_class: type  # the layer's class before fusing
    holder: str  # the name of PEFT's attribute {adapter name: parameters} that lists every adapter of the layer

    @staticmethod
    def method(layer, name) -> type:
        """The Part class of this adapter. `layer` may be fused or not."""
        raise NotImplementedError

    def forward(self, x, *args, **kwargs):
        if not isinstance(self, FusedLayer):  # a wrapper still holds this method after unfuse
            return type(self).forward(self, x, *args, **kwargs)
        if self._disable_adapters:
            return self.unadapted(x, args, kwargs)
        if kwargs or rows_of_batch.in_use:
            names, rows = kwargs.pop("adapter_names", None), rows_of_batch.current()
            if names is not None or rows is not None:
                return self.of_rows(x, rows.of(self, x) if names is None else names, *args, **kwargs)
        active = self.active()
        if self.merged_adapters or not active:
            return self.unadapted(x, args, kwargs)
        reason, is_around, parts, weight, bias, is_plain = self.described(x, active, args, kwargs)
        if is_plain or not is_dynamo_compiling():
            self._fused_calls[FUSED if reason is None else AROUND + reason if is_around else reason] += 1
        if reason is None:
            return compute(parts, x, weight, bias, is_plain)
        return compute_around(parts, x, self.base_layer) if is_around else super().forward(x, *args, **kwargs)

    def of_rows(self, x, names, *args, **kwargs):
        """forward for a batch in which row i of x has the adapter names[i]."""
        raise NotImplementedError

    def unadapted(self, x, args, kwargs):
        """The output of the frozen layer alone."""
        y = self.decoded(x, args, kwargs)
        return super().forward(x, *args, **kwargs) if y is None else y

    def decoded(self, x, args, kwargs):
        """The output of a quantised frozen layer alone, computed by the ops; None for any other layer. In eval mode on
        a CPU, Linear4bit's own forward would repack the weight in place and round its scales."""
        if not is_quantized(self.base_layer) or args or kwargs or why_not_now() is not None:
            return None
        if self._disable_adapters and self.merged:
            self.unmerge()
        base, weight, bias = frozen_base.read(self.base_layer, x)
        return compute((Part(),), x, weight, bias) if why_not(base, of_input(x), ())[0] is None else None

    def active(self):
        """The names of the active adapters that this layer has."""
        names, held = self._active_adapter, self._modules[self.holder]
        held = held._modules if type(held) is ModuleDict else held
        if type(names) is str:
            names = (names,)
        for name in names:
            if name not in held:
                return [name for name in names if name in held]
        return names

    def holds(self, name) -> bool:
        return name in self._modules[self.holder]

    def described(self, x, active, args=(), kwargs=None):
        """(reason, is_around, parts of the active adapters, weight, bias, is_plain).

        reason: why the call cannot be fused, or None. is_around: with a reason, whether the ops can still add the
        update to the frozen layer's own output. is_plain: see `Part`.
        """
        compiling = is_compiling()
        reason = why_not_called(args, kwargs, compiling)
        if reason is not None:  # inside a transform or a trace the facts must not be read
            return reason, False, (), None, None, False
        base, weight, bias = frozen_base.read(self._modules["base_layer"], x)
        of_x, method = of_input(x), self.method
        if len(active) == 1:  # inlined: in decoding this takes much of a small layer's time
            name = active[0]
            kind = method(self, name)
            found, part = kind.read(self, name)
            facts, parts = (base, of_x, kind, found), (part,)
        else:
            kinds = [method(self, name) for name in active]
            found, parts = zip(*(kind.read(self, name) for kind, name in zip(kinds, active, strict=True)), strict=True)
            facts = base, of_x, kinds, found
        before, answer = self._call_cache.last
        if compiling or facts != before:
            adapters = ((kind, found),) if len(active) == 1 else tuple(zip(kinds, found, strict=True))
            answer = why_not(base, of_x, adapters)
            if not compiling:
                self._call_cache.last = facts, answer
        return *answer, parts, weight, bias, of_x[-1] is None and not compiling  # is_plain: no autocast

    def count(self, reason) -> None:
        if not is_dynamo_compiling():
            self._fused_calls[reason or FUSED] += 1

    @classmethod
    def why_not_layer(cls, layer) -> str | None:
        """Why no adapter of the layer can be fused, for any input; None if at least one adapter can."""
        reason = why_not_forward(layer)
        if reason is not None:
            return reason
        base = frozen_base.read(layer.base_layer)[0]
        of_base = frozen_base.why_not(base, is_loaded=False)
        called = frozen_base.why_not_called(base)
        methods = {name: cls.method(layer, name) for name in getattr(layer, cls.holder)}
        reasons = []
        for name, method in methods.items():
            reason = called if method.around is not None else of_base
            reasons.append(reason or method.why_not(method.read(layer, name)[0], is_loaded=False))
        if not reasons:
            return of_base
        return None if None in reasons else reasons[0]

    @classmethod
    def attach(cls, layer) -> None:
        """Sets the class of a PEFT layer to this fused class."""
        set_class(layer, cls)
        layer._fused_calls, layer._call_cache = Counter(), CallCache()

    def detach(self) -> None:
        """Restores the layer's PEFT class; merged adapters are unmerged first and merged again by PEFT's code."""
        names = list(self.merged_adapters)
        if names:
            self.unmerge()
        set_class(self, self.peft_class)
        del self._fused_calls, self._call_cache
        if names:
            self.merge(adapter_names=names)

    def merged_weight(self, weight, names):
        """The base weight with these adapters merged in order, computed in float32 and rounded once.

        The result has the layout of `weight`, or the format of a Frozen. None if PEFT's merge must run. RuntimeError,
        outside of `lossy_merge`, if rounding to the format loses too much of the update.
        """
        transposed = is_conv1d(self.base_layer)
        if type(weight) is Frozen:
            frozen = weight.dequantize(torch.float32)
        else:
            frozen = in_float32(weight.t() if transposed else weight)
        total = frozen.clone()
        for name in names:
            method = self.method(self, name)
            found, part = method.read(self, name)
            total = part.merged(total, frozen) if method.why_not(found) is None else None
            if total is None:
                return None
        if type(weight) is Frozen:
            return requantized(weight, total)
        return (total.t() if transposed else total).to(weight.dtype).contiguous()

    def _get_name(self):
        return self.peft_class.__name__  # repr shows the name of PEFT's class

    def extra_repr(self):
        return "fused"
