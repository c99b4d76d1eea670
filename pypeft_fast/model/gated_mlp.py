"""Gated feedforward modules, as Llama, Mistral and Qwen have them, with the activation joined to an adapted down_proj.

    down_proj(act_fn(gate_proj(x)) * up_proj(x))

The class of such a module is set to a subclass of its own that overrides forward, and back; parameters, names, state
dict and isinstance relations stay. A module is known by its forward's bytecode, not by its architecture's name, and
whatever the fused function cannot stand for runs in the module's own forward.
"""

import functools

from torch import nn

from ..autograd.lora_mlp import lora_gated_linear
from ..ops.swiglu import swiglu
from .can_fuse import computing_dtype, hooked, set_class, why_not_forward, why_not_now


class _Formula:
    """The two ways in which transformers writes it; what the argument is called does not matter."""

    def assigned(self, x):
        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj

    def returned(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def _meaning(function):
    """What of a plain function decides what it computes; of any other callable, None."""
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
        down, act = self.down_proj, self.act_fn
        plain = (
            swiglu.has_forced() and hasattr(down, "as_lora") and _is_silu(act) and not hooked(act) and not hooked(down)
        )
        if not plain or len(args) != 1 or kwargs or why_not_now() is not None:
            return super().forward(*args, **kwargs)
        gate, up, layer = self.gate_proj(*args), self.up_proj(*args), None
        if gate.shape == up.shape and gate.dtype == up.dtype == computing_dtype(gate) and type(gate) is type(up):
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
        """Copies and pickles: the generated class has no name to be found by."""
        if not _is_ours(self):
            return super().__reduce_ex__(protocol)
        _, _, *state = super().__reduce_ex__(2)
        return _empty, (self._unfused,), *state


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


def _has_lora(down) -> bool:
    return hasattr(down, "as_lora") and len(down.lora_A) > 0


def _can_be_fused(module) -> bool:
    return (
        _has_lora(module._modules.get("down_proj"))
        and _meaning(type(module).forward) in _MEANINGS
        and why_not_forward(module) is None
        and all(isinstance(module._modules.get(name), nn.Module) for name in ("gate_proj", "up_proj", "act_fn"))
        and _is_silu(module.act_fn)
    )


def _is_ours(module) -> bool:
    """Whether its class is the generated one. FSDP2 derives another from it, whose end is not ours to make."""
    return type(module) is _fused(module._unfused)


def _detach(module):
    """A derived class stays, and in it the module's own forward runs: down_proj has no LoRA adapter any more."""
    if _is_ours(module):
        set_class(module, module._unfused)


def refresh(model) -> list[str]:
    """Fuses every gated module whose down_proj has a LoRA adapter, ends it for the others; the names of the fused."""
    fused = []
    for name, module in model.named_modules():
        if isinstance(module, GatedMLP):
            keeps = _has_lora(module._modules.get("down_proj"))
            if not keeps:
                _detach(module)
        else:
            keeps = _can_be_fused(module)
            if keeps:
                set_class(module, _fused(type(module)))
        if keeps:
            fused.append(name)
    return fused


def derived(model) -> dict[str, nn.Module]:
    """The fused modules whose class something else has been derived from since: `release` leaves them."""
    return {n: m for n, m in model.named_modules() if isinstance(m, GatedMLP) and not _is_ours(m)}


def release(model) -> None:
    """Gives every fused module its own class again."""
    for module in model.modules():
        if isinstance(module, GatedMLP):
            _detach(module)
