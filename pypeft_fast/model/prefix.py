"""Prefix tuning (arXiv:2101.00190) on a model, through transformers' caches; the functions are those of lora.py."""

import inspect

import torch
from torch import nn

from .prompt import FILE_NAME, dimensions, prompts, tensors
from .prompt_config import PrefixTuningConfig
from .prompt_layer import counts_positions, extend, is_encoder_decoder

__all__ = ["add", "complete", "plan", "shapes", "tensors"]
ALIKE = ("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers", "modules_to_save")
NOT_RESUMED = (
    "the file holds what the projection computed, not the projection itself, so training cannot go on from it; load it "
    "with is_trainable=False, or train with prefix_projection=False"
)


class PrefixEncoder(nn.Module):
    """Keys and values [P, layers * 2 * dim] of P virtual tokens: trained, or the result of a two-layer network."""

    into_cache = True

    def __init__(self, config, projected, positions):
        super().__init__()
        P, dim, self.layers = config.num_virtual_tokens, config.token_dim, config.num_layers
        self.virtual_tokens, self.heads = P, config.num_attention_heads
        self.positions, self.stride = positions, 2 * config.num_transformer_submodules
        self.transform = None
        if projected:
            self.embedding = nn.Embedding(P, dim)
            hidden = config.encoder_hidden_size
            self.transform = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, self.layers * 2 * dim))
        else:
            self.embedding = nn.Embedding(P, self.layers * 2 * dim)
        if config.init_weights == "zero":
            for parameter in (self.transform[-1] if projected else self.embedding).parameters():
                nn.init.zeros_(parameter)

    def file_tensor(self):
        return self.embedding.weight if self.transform is None else self.transform(self.embedding.weight)

    def fill(self, cache, batch, dtype):
        """Puts the prefix in an empty cache, layer by layer: keys and values [B, heads, P, head dim]."""
        values = self.file_tensor().to(dtype).view(self.virtual_tokens, 2 * self.layers, self.heads, -1)
        values = values.permute(1, 2, 0, 3).unsqueeze(1).expand(-1, batch, -1, -1, -1)
        for layer in range(self.layers):
            # In an encoder-decoder PEFT deals four to a layer, going round, of which the decoder's own attention uses
            # two: the files mean that.
            row = layer * self.stride % (2 * self.layers)
            cache.update(values[row], values[row + 1], layer)

    def insert(self, owner, call):
        """The arguments with the prefix in the cache, which is made if there is none, and room for it in the mask."""
        if owner.training and _checkpoints(owner):
            raise ValueError(
                "prefix tuning does not work with gradient checkpointing, which drops the cache that holds the prefix; "
                "call gradient_checkpointing_disable()"
            )
        decoder = "decoder_" if is_encoder_decoder(owner) else ""
        first = _first_given(call, f"{decoder}input_ids", f"{decoder}inputs_embeds", "labels")
        # Without use_cache the text comes whole each time: what an earlier call left in the cache would count twice.
        cache = None if call.get("use_cache") is False else call.get("past_key_values")
        extend(
            call, self.virtual_tokens, f"{decoder}attention_mask", first.shape[:2], first.device,
            "cached" if self.positions else None,
        )  # fmt: skip
        if cache is None or cache.get_seq_length() == 0:
            cache = _new_cache(owner) if cache is None else cache
            self.fill(getattr(cache, "self_attention_cache", cache), first.shape[0], owner.dtype)
            call["past_key_values"] = cache
        return call

    def before_generate(self, model, args, kwargs):
        return args, kwargs


def _first_given(call, *names):
    found = next((call[name] for name in names if call.get(name) is not None), None)
    if found is None:
        raise ValueError(f"the model was called with none of {', '.join(names)}")
    return found


def _checkpoints(module) -> bool:
    return any(getattr(m, "gradient_checkpointing", False) for m in module.modules())


def _new_cache(owner):
    from transformers import DynamicCache, EncoderDecoderCache

    if is_encoder_decoder(owner):
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()


def cache_owner(model):
    """The module that takes past_key_values: the model, or the one inside that a classifier stands on; None if none."""
    for module in (model, getattr(model, "base_model", None)):
        if module is not None and "past_key_values" in inspect.signature(module.forward).parameters:
            return module
    return None


def _dimensions(model, config) -> dict[str, int]:
    """As for prompt tuning; with grouped-query attention the widths are those of the keys, as in PEFT."""
    found = dimensions(model, config)
    known = getattr(model.config, "text_config", model.config)
    if any(known.to_dict().get(name) is not None for name in ("per_layer_config", "global_head_dim")):
        raise ValueError(f"prefix tuning needs heads of one size in all layers; {type(model).__name__} has several")
    heads = getattr(known, "num_key_value_heads", None)
    if heads is not None:
        head_dim = getattr(known, "head_dim", None) or known.hidden_size // known.num_attention_heads
        found |= {"token_dim": head_dim * heads, "num_attention_heads": heads}
    dim, heads = found["token_dim"], found["num_attention_heads"]
    width = getattr(known, "d_kv", None) or dim // heads
    if dim % heads or dim // heads != width:
        raise ValueError(
            f"prefix tuning with token_dim={dim} and num_attention_heads={heads}: this model's heads are {width} wide; "
            f"give token_dim={width * heads}"
        )
    hidden = config.encoder_hidden_size
    return found | {"encoder_hidden_size": dim if hidden is None else hidden}


def plan(tuner, config: PrefixTuningConfig) -> list:
    """No module is replaced; ValueError if the model takes no past_key_values or has gradient checkpointing on."""
    model = tuner.model
    _dimensions(model, config)
    if cache_owner(model) is None:
        raise ValueError(f"prefix tuning needs a model that takes past_key_values; {type(model).__name__} does not")
    if _checkpoints(model):
        raise ValueError("prefix tuning does not work with gradient checkpointing: gradient_checkpointing_disable()")
    return []


def complete(tuner, config, targets) -> None:
    for field, value in _dimensions(tuner.model, config).items():
        setattr(config, field, value)


def shapes(tuner, config, targets) -> dict[str, torch.Size]:
    found = _dimensions(tuner.model, config)
    return {FILE_NAME: torch.Size([config.num_virtual_tokens, found["num_layers"] * 2 * found["token_dim"]])}


def add(tuner, adapter, config, targets, autocast, fresh) -> None:
    projected = config.prefix_projection and not config.inference_mode
    if projected and not fresh:
        raise ValueError(f"prefix_projection=True: {NOT_RESUMED}")
    encoder = PrefixEncoder(config, projected, counts_positions(cache_owner(tuner.model)))
    prompts(tuner).prompt_encoder[adapter] = encoder.to(next(tuner.model.parameters()).device)
