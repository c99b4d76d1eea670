"""PromptLayer: the adapters that put virtual tokens before the text, and the hooks through which they do it.

The model's own forward and generate stay as they are: before each forward a hook adds the tokens to its arguments.
"""

import inspect

import torch
from torch import nn

from .layer import AdapterLayer


class PromptLayer(AdapterLayer):
    """Holds an encoder an adapter, of which one at most is active: what has `virtual_tokens` and `insert`."""

    holders = ("prompt_encoder",)

    def __init__(self):
        super().__init__()
        self._start()
        self.prompt_encoder = nn.ModuleDict()
        self._handles = []

    def watch(self, model, cache_owner):
        """Registers the hooks: on the model, and on the module of it that takes past_key_values, if one does."""
        self._handles = [model.register_forward_pre_hook(self._before_model, with_kwargs=True)]
        if cache_owner is not None:
            self._handles.append(cache_owner.register_forward_pre_hook(self._before_cache_owner, with_kwargs=True))

    def release(self):
        for handle in self._handles:
            handle.remove()

    def clash(self, names):
        here = [name for name in names if name in self.prompt_encoder]
        if len(here) > 1:
            return f"{' and '.join(here)} each put virtual tokens before the text; activate one of them"
        return None

    def current(self):
        """The active adapter's encoder, or None."""
        if self.rows is not None:
            named = [name for name in self.rows if name in self.prompt_encoder]
            if named:
                raise ValueError(
                    f"adapter_names names {named[0]!r}, which puts virtual tokens before the text: all rows of a batch "
                    "need the same; use set_adapter"
                )
            return None
        return next((self.prompt_encoder[name] for name in self.active if name in self.prompt_encoder), None)

    def _before_model(self, module, args, kwargs):
        return self._before(module, args, kwargs, into_cache=False)

    def _before_cache_owner(self, module, args, kwargs):
        return self._before(module, args, kwargs, into_cache=True)

    def _before(self, module, args, kwargs, into_cache):
        encoder = self.current()
        if encoder is None or encoder.into_cache != into_cache:
            return None
        names = inspect.signature(module.forward).parameters
        call = kwargs | dict(zip(names, args, strict=False))
        return (), encoder.insert(module, call)


def is_encoder_decoder(model) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def counts_positions(module) -> bool:
    """Whether positions of tokens are this module's arguments and are counted from the first token that is no padding.

    Bidirectional encoders are left to count by themselves: some start at another number, and they are padded on the
    right.
    """
    causal = any(getattr(m, "is_causal", False) for m in module.modules())
    return causal and "position_ids" in inspect.signature(module.forward).parameters


def extend(call, tokens, name, shape, device, positions) -> None:
    """Lets the attention mask and the position ids of a call know of virtual tokens before its own.

    call: the arguments, changed in place; name: the mask's; shape: (B, T) of the tokens of this call; positions:
    "inserted" where the virtual tokens are among the tokens of this call, "cached" where they lie in the cache, None
    where the model counts by itself.
    """
    mask = call.get(name)
    if getattr(call.get("past_key_values"), "is_compileable", False):
        raise ValueError("virtual tokens need a cache that grows; cache_implementation='static' is not supported")
    if mask is not None:
        if mask.dim() != 2:
            raise ValueError(f"{name} has shape {tuple(mask.shape)}; virtual tokens need a mask [batch, length]")
        mask = torch.cat([mask.new_ones(mask.shape[0], tokens), mask], dim=1)
        call[name] = mask
    if positions is None:
        return
    T = shape[1]
    given = call.get("position_ids")
    if given is not None:
        counted = given + tokens
    elif mask is not None:
        counted = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
    else:
        return  # counted by the model, from the cache's length
    if positions == "inserted":
        first = torch.arange(tokens, device=device).expand(counted.shape[0], -1)
        counted = torch.cat([first, counted], dim=1)
    call["position_ids"] = counted
