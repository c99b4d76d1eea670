"""FusedLayer: a PEFT layer that runs on the fused ops, whatever the methods of its adapters are.

The class of an existing layer is set to a subclass with FusedLayer in front, and back; parameters, names and state dict
stay what they are, and everything but forward and merging is inherited. Whatever the ops cannot do runs in PEFT's own
forward, and is counted. What the layer computes, why it does not, and the report are read from one description: the
facts and the parts of its frozen base and of its adapters (part.py).
"""

from collections import Counter

from torch.compiler import is_compiling, is_dynamo_compiling

from ...frozen.modules import is_conv1d
from ..joints import rows as rows_of_batch
from . import frozen_base
from .exact_merge import ExactMerge, in_float32
from .facts import of_input
from .part import compute, why_not
from .rules import why_not_now
from .swapped_class import set_class, why_not_forward
from .switching import Marked

FUSED = "fused"  # in a layer's counter: calls that the ops ran; the other keys are reasons why PEFT's forward ran


class Judged:
    """The facts of a layer's last call and what the rules said of them; a copied or unpickled layer asks anew."""

    __slots__ = ("last",)

    def __init__(self):
        self.last = None, None

    def __reduce__(self):
        return Judged, ()


class FusedLayer(Marked, ExactMerge):
    """Before the class of a PEFT layer, `peft_class`.

    A subclass says where PEFT keeps the adapters, `holder`, and of which method each is. PEFT looks for "Linear" in the
    names of the classes of tuner layers, so a subclass's name has it too.
    """

    peft_class: type  # of a layer before it is fused
    holder: str  # the attribute {name: parameters} in which every adapter of the layer is

    @staticmethod
    def method(layer, name) -> type:
        """The Part of this adapter. `layer` may be one that is not fused."""
        raise NotImplementedError

    def forward(self, x, *args, **kwargs):
        if not isinstance(self, FusedLayer):  # a wrapper has kept this method past unfuse
            return type(self).forward(self, x, *args, **kwargs)
        if self._disable_adapters:
            return super().forward(x, *args, **kwargs)
        if kwargs or rows_of_batch.in_use:
            names, rows = kwargs.pop("adapter_names", None), rows_of_batch.current()
            if names is not None or rows is not None:
                return self.of_rows(x, rows.of(self, x) if names is None else names, *args, **kwargs)
        active = self.active()
        if self.merged_adapters or not active:
            return super().forward(x, *args, **kwargs)
        reason, parts, weight, bias, is_plain = self.described(x, active, args, kwargs)
        if is_plain or not is_dynamo_compiling():
            self._fused_calls[reason or FUSED] += 1
        if reason is not None:
            return super().forward(x, *args, **kwargs)
        return compute(parts, x, weight, bias, is_plain)

    def of_rows(self, x, names, *args, **kwargs):
        """forward where each row of x has the adapter of its name."""
        raise NotImplementedError

    def active(self) -> list[str]:
        """The active adapters that this layer has."""
        names, held = self._active_adapter, self._modules[self.holder]
        if type(names) is str:
            names = [names]
        for name in names:
            if name not in held:
                return [name for name in names if name in held]
        return names

    def holds(self, name) -> bool:
        return name in self._modules[self.holder]

    def described(self, x, active, args=(), kwargs=None, by_row=False):
        """(why the call cannot be fused or None, the active adapters' parts, weight, bias, is_plain: see `compute`)."""
        compiling = is_compiling()
        reason = why_not_now(compiling)
        if args or kwargs and any(value is not None for value in kwargs.values()):
            reason = "the call has further arguments"
        if reason is not None:  # what is read would be another than it seems within a transform or a trace
            return reason, (), None, None, False
        base, weight, bias = frozen_base.read(self._modules["base_layer"])
        of_x, adapters, parts = of_input(x), [], []
        for name in active:
            method = self.method(self, name)
            found, part = method.read(self, name)
            adapters.append((method, found))
            parts.append(part)
        if compiling:
            return why_not(base, of_x, adapters, by_row), parts, weight, bias, False
        before, reason = self._judged.last
        facts = base, of_x, adapters, by_row
        if facts != before:
            reason = why_not(*facts)
            self._judged.last = facts, reason
        return reason, parts, weight, bias, of_x[-1] is None  # no autocast

    def count(self, reason) -> None:
        if not is_dynamo_compiling():
            self._fused_calls[reason or FUSED] += 1

    @classmethod
    def why_not_layer(cls, layer) -> str | None:
        """Why none of the adapters of a layer can be fused, whatever the input; None if one can."""
        reason = why_not_forward(layer) or frozen_base.why_not_module(layer.base_layer)
        if reason is not None:
            return reason
        methods = {name: cls.method(layer, name) for name in getattr(layer, cls.holder)}
        reasons = [method.why_not(method.read(layer, name)[0], is_loaded=False) for name, method in methods.items()]
        return None if None in reasons or not reasons else reasons[0]

    @classmethod
    def attach(cls, layer) -> None:
        """Makes a layer of PEFT's class a fused one."""
        set_class(layer, cls)
        layer._fused_calls, layer._judged = Counter(), Judged()

    def detach(self) -> None:
        """Takes it back; adapters that are merged are merged by PEFT's own arithmetic then."""
        names = list(self.merged_adapters)
        if names:
            self.unmerge()
        set_class(self, self.peft_class)
        del self._fused_calls, self._judged
        if names:
            self.merge(adapter_names=names)

    def merged_weight(self, weight, names):
        """The base weight with these adapters one after the other, added up in float32 and rounded once; in its own
        layout. None: PEFT's merge computes it."""
        transposed = is_conv1d(self.base_layer)
        frozen = in_float32(weight.t() if transposed else weight)
        total = frozen.clone()
        for name in names:
            method = self.method(self, name)
            found, part = method.read(self, name)
            total = part.merged(total, frozen) if method.why_not(found) is None else None
            if total is None:
                return None
        return (total.t() if transposed else total).to(weight.dtype).contiguous()

    def _get_name(self):
        return self.peft_class.__name__  # in repr, which names PEFT's class

    def extra_repr(self):
        return "fused"
