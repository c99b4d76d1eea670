"""Gated feedforward modules of Llama, Mistral and Qwen: the activation and a down_proj with LoRA as one function.

    down_proj(act_fn(gate_proj(x)) * up_proj(x))

Fusing sets the class of such a module to a generated subclass that overrides forward; unfusing restores the class.
Parameters, names, state dict and isinstance relations do not change. A module is recognised by the bytecode of its
forward, not by the name of its architecture. A call that the fused function does not support runs in the module's own
forward.
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
    """The two forms of this forward in transformers; the name of the argument may differ."""

    def assigned(self, x):
        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj

    def returned(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def _meaning(function):
    """The bytecode, names and argument counts of a Python function; None for any other callable."""
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    arguments = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0x0C
    return code.co_code, code.co_names, code.co_freevars, *arguments


_MEANINGS = tuple(map(_meaning, (_Formula.assigned, _Formula.returned)))


class GatedMLP(nn.Module):
    """The first base class of a generated class; `_unfused` is the second base, the module's class before fusing."""

    def forward(self, *args, **kwargs):
        if not isinstance(self, GatedMLP):  # a wrapper still holds this method after the module was unfused
            return type(self).forward(self, *args, **kwargs)
        reason = _why_not_call(self, args, kwargs)
        if not torch.compiler.is_dynamo_compiling():
            self._gated_calls[reason or FUSED] += 1
        if reason is not None:
            return super().forward(*args, **kwargs)
        down, act = self.down_proj, self.act_fn
        gate, up, layer = self.gate_proj(*args), self.up_proj(*args), None
        if gate.shape == up.shape and gate.dtype == up.dtype == _computed(gate) and type(gate) is type(up):
            layer = down.as_lora(gate)  # act(gate) * up has the dtype and shape of gate
        return down(act(gate) * up) if layer is None else lora_gated_linear(gate, up, **layer)

    def _get_name(self):
        return self._unfused.__name__  # in repr

    def __setattr__(self, name, value):
        """Unfuses the module if a layer without LoRA replaces down_proj, as PEFT's unload and transformers' do."""
        super().__setattr__(name, value)
        if name == "down_proj" and not hasattr(value, "as_lora"):
            _detach(self)

    def __reduce_ex__(self, protocol):
        """For copy and pickle, which cannot import the generated class by its name."""
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
    """Whether the activation is PyTorch's SiLU, not in place, or transformers' SiLU."""
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
    """Whether the module computes the formula above and its down_proj, `down`, has LoRA."""
    return (
        _has_lora(down)
        and _meaning(type(module).forward) in _MEANINGS
        and all(isinstance(module._modules.get(name), nn.Module) for name in ("gate_proj", "up_proj", "act_fn"))
    )


def why_not(module) -> str | None:
    """Why a module with this formula is not fused, or None."""
    if not _is_silu(module.act_fn):
        return f"the activation is {type(module.act_fn).__name__}, not SiLU"
    return why_not_forward(module)


def _is_ours(module) -> bool:
    """Whether the module's class is exactly the generated one; a class that FSDP2 derives from that must not change."""
    return type(module) is _fused(module._unfused)


def _attach(module):
    set_class(module, _fused(type(module)))
    module._gated_calls = Counter()


def _detach(module):
    """Restores the module's class. A class derived from the generated one stays; its forward then finds no LoRA in
    down_proj and runs the module's own forward."""
    if _is_ours(module):
        set_class(module, module._unfused)
        del module._gated_calls


def refresh(model) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Fuses every gated module whose down_proj has a LoRA adapter, and unfuses the other gated modules.

    Returns {name: fused module}, and {name: reason} of the modules whose down_proj is fused but which are not.
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
    """Fuses the gated module that gets the layer `down` as its down_proj, when the layer is assigned.

    PEFT builds a layer before the layer's place in the model is known. The parent's setattr is the first call with both
    the parent and the layer, so a registration hook waits for this call.
    """
    awaited = weakref.ref(down)

    def placed(parent, name, child):
        if awaited() is None or child is awaited():
            handle.remove()
        if child is awaited() and name == "down_proj" and _is_gated(parent, child) and why_not(parent) is None:
            _attach(parent)

    handle = register_module_module_registration_hook(placed)


def derived(model) -> dict[str, nn.Module]:
    """{name: module} of the fused modules whose class another tool has derived from ours; `release` skips them."""
    return {n: m for n, m in model.named_modules() if isinstance(m, GatedMLP) and not _is_ours(m)}


def release(model) -> None:
    """Restores the class of every fused gated module."""
    for module in model.modules():
        if isinstance(module, GatedMLP):
            _detach(module)
