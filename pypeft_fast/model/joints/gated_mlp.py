"""Gated feedforward modules, as Llama, Mistral and Qwen have them, with the activation joined to an adapted down_proj.

    down_proj(act_fn(gate_proj(x)) * up_proj(x))

The class of such a module is set to a subclass of its own that overrides forward, and back; parameters, names, state
dict and isinstance relations stay. A module is recognised by its forward's bytecode, not by its architecture's name.
A call that the fused function does not support runs in the module's own forward.
"""

import functools
import weakref
from collections import Counter

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from ...autograd.lora_mlp import lora_gated_linear
from ...ops.swiglu import swiglu
from ..layers.facts import autocast_dtype, of_module
from ..layers.fused_layer import FUSED
from ..layers.rules import computing, why_not_now
from ..layers.swapped_class import set_class, why_not_forward


class _Formula:
    """The two forms of this forward in transformers; the argument's name does not matter."""

    def assigned(self, x):
        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj

    def returned(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def _meaning(function):
    """The parts of a plain function that decide its result; None for any other callable."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0x0C
    return code.co_code, code.co_names, code.co_freevars, *arguments


_MEANINGS = tuple(map(_meaning, (_Formula.assigned, _Formula.returned)))


class GatedMLP(nn.Module):
    """What the generated class puts before the module's own, which is its `_unfused`."""

    def forward(self, *args, **kwargs):
        if not isinstance(self, GatedMLP):  # a wrapper has kept this method past the end of the fusion
            return type(self).forward(self, *args, **kwargs)
        reason = _why_not_call(self, args, kwargs)
        if not torch.compiler.is_dynamo_compiling():
            self._gated_calls[reason or FUSED] += 1
        if reason is not None:
            return super().forward(*args, **kwargs)
        down, act = self.down_proj, self.act_fn
        gate, up, layer = self.gate_proj(*args), self.up_proj(*args), None
        if gate.shape == up.shape and gate.dtype == up.dtype == _computed(gate) and type(gate) is type(up):
            layer = down.as_lora(gate)  # the product's dtype and shape are gate's
        return down(act(gate) * up) if layer is None else lora_gated_linear(gate, up, **layer)

    def _get_name(self):
        return self._unfused.__name__  # in repr

    def __setattr__(self, name, value):
        """Taking the adapters off puts a plain layer in the place of down_proj, in either library: the fusion ends."""
        super().__setattr__(name, value)
        if name == "down_proj" and not hasattr(value, "as_lora"):
            _detach(self)

    def __reduce_ex__(self, protocol):
        """For copy and pickle, which cannot find the generated class by name."""
        if not _is_ours(self):
            return super().__reduce_ex__(protocol)
        _, _, *state = super().__reduce_ex__(2)
        return _empty, (self._unfused,), *state


def _computed(gate):
    """The dtype that down_proj computes in."""
    return computing(gate.dtype, autocast_dtype(gate.device))


def _empty(kind):
    fused = _fused(kind)
    return fused.__new__(fused)


@functools.cache
def _fused(kind):
    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "_unfused": kind}
    return type(f"Fused{kind.__name__}", (GatedMLP, kind), names)


def _is_silu(act) -> bool:
    """PyTorch's or transformers' own; neither has parameters."""
    kind = type(act)
    of_transformers = kind.__name__ == "SiLUActivation" and kind.__module__ == "transformers.activations"
    return of_transformers or kind is nn.SiLU and not act.inplace


def _why_not_call(module, args, kwargs) -> str | None:
    """Why this call runs in the module's own forward, or None."""
    down, act = module.down_proj, module.act_fn
    if not hasattr(down, "as_lora") or not _is_silu(act):
        return "down_proj or the activation has been replaced"
    if of_module(act)[1] or of_module(down)[1]:
        return "down_proj or the activation has hooks or a forward of its own"
    if len(args) != 1 or kwargs:
        return "the call has further arguments"
    return why_not_now() if swiglu.has_forced() else "the kernel that `using` forces has no swiglu"


def _has_lora(down) -> bool:
    return hasattr(down, "as_lora") and len(down.lora_A) > 0


def _is_gated(module, down) -> bool:
    """Whether the module has the formula above, with this layer as its down_proj, and LoRA in it."""
    return (
        _has_lora(down)
        and _meaning(type(module).forward) in _MEANINGS
        and all(isinstance(module._modules.get(name), nn.Module) for name in ("gate_proj", "up_proj", "act_fn"))
    )


def why_not(module) -> str | None:
    """Why a module of this formula is left as it is, or None."""
    if not _is_silu(module.act_fn):
        return f"the activation is {type(module.act_fn).__name__}, not SiLU"
    return why_not_forward(module)


def _is_ours(module) -> bool:
    """Whether the module has exactly the generated class, not one that FSDP2 has derived from it, which must stay."""
    return type(module) is _fused(module._unfused)


def _attach(module):
    set_class(module, _fused(type(module)))
    module._gated_calls = Counter()


def _detach(module):
    """A derived class stays, and in it the module's own forward runs: down_proj has no LoRA adapter any more."""
    if _is_ours(module):
        set_class(module, module._unfused)
        del module._gated_calls


def refresh(model) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Fuses every gated module whose down_proj has a LoRA adapter, ends it for the others.

    Returns the fused by name, and {name: why it is left} of those whose down_proj is fused and they are not.
    """
    fused, left = {}, {}
    for name, module in model.named_modules():
        down = module._modules.get("down_proj")
        if isinstance(module, GatedMLP):
            if not _has_lora(down):
                _detach(module)
                continue
        elif not _is_gated(module, down):
            continue
        else:
            left[name] = why_not(module)
            if left[name] is not None:
                continue
            del left[name]
            _attach(module)
        fused[name] = module
    return fused, left


def join_when_placed(down) -> None:
    """Fuses the gated module that gets this layer as its down_proj, as soon as it gets it.

    PEFT builds a layer before its place in the model is known; the parent's setattr is the first call that knows it.
    """
    awaited = weakref.ref(down)

    def placed(parent, name, child):
        if awaited() is None or child is awaited():
            handle.remove()
        if child is awaited() and name == "down_proj" and _is_gated(parent, child) and why_not(parent) is None:
            _attach(parent)

    handle = register_module_module_registration_hook(placed)


def derived(model) -> dict[str, nn.Module]:
    """The fused modules whose class something else has been derived from since: `release` leaves them."""
    return {n: m for n, m in model.named_modules() if isinstance(m, GatedMLP) and not _is_ours(m)}


def release(model) -> None:
    """Gives every fused module its own class again."""
    for module in model.modules():
        if isinstance(module, GatedMLP):
            _detach(module)
