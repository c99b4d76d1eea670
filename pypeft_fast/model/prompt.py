"""Prompt tuning (arXiv:2104.08691) on a model; the functions are those that lora.py describes."""

import math

import torch
from torch import nn

from .config import TaskType
from .prompt_config import PromptTuningConfig, PromptTuningInit
from .prompt_layer import PromptLayer, counts_positions, extend, is_encoder_decoder

ALIKE = ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "modules_to_save")
FILE_NAME = "prompt_embeddings"


class PromptEmbedding(nn.Module):
    """Embeddings [num_virtual_tokens * submodules, dim]; those of an encoder, the first, come before the text's."""

    into_cache = False

    def __init__(self, rows, dim, virtual_tokens, positions):
        super().__init__()
        self.embedding = nn.Embedding(rows, dim)
        self.virtual_tokens = virtual_tokens
        self.positions = positions  # whether position_ids are to be given

    def file_tensor(self):
        return self.embedding.weight

    def before(self, embeddings):
        """[B, P + T, dim] of the text's embeddings [B, T, dim]."""
        prompt = self.embedding.weight[: self.virtual_tokens].to(embeddings.dtype)
        return torch.cat([prompt.expand(embeddings.shape[0], -1, -1), embeddings], dim=1)

    def insert(self, model, call):
        """The model's arguments with the prompt before the text, or with room for the one that is in the cache."""
        if call.get("encoder_outputs") is not None:
            return call  # the prompt was before the encoder's text
        cache, P = call.get("past_key_values"), self.virtual_tokens
        ids, embeddings = call.get("input_ids"), call.get("inputs_embeds")
        first = ids if ids is not None else embeddings
        if first is None:
            raise ValueError("the model was called with neither input_ids nor inputs_embeds")
        shape, device = first.shape[:2], first.device
        if not is_encoder_decoder(model) and cache is not None and cache.get_seq_length() > 0:
            extend(call, P, "attention_mask", shape, device, "cached" if self.positions else None)
            return call
        extend(call, P, "attention_mask", shape, device, "inserted" if self.positions else None)
        call.pop("input_ids", None)
        call["inputs_embeds"] = self.before(model.get_input_embeddings()(ids) if embeddings is None else embeddings)
        self._shift_targets(model, call, shape)
        return call

    def _shift_targets(self, model, call, shape):
        """What names tokens by their place: nothing is asked of virtual tokens."""
        P = self.virtual_tokens
        types, labels = call.get("token_type_ids"), call.get("labels")
        if types is not None:
            call["token_type_ids"] = torch.cat([types.new_zeros(types.shape[0], P), types], dim=1)
        per_token = labels is not None and labels.shape == shape and not labels.is_floating_point()
        if per_token and not is_encoder_decoder(model):
            call["labels"] = torch.cat([labels.new_full((labels.shape[0], P), -100), labels], dim=1)
        for name in ("start_positions", "end_positions"):
            if call.get(name) is not None:
                call[name] = call[name] + P

    def before_generate(self, model, args, kwargs):
        """For an encoder-decoder: its generate runs the encoder without the model's forward, where the hook is."""
        if not is_encoder_decoder(model):
            return args, kwargs
        kwargs = dict(kwargs)
        if args:
            kwargs["inputs"], args = args[0], args[1:]
        ids = [kwargs.pop(name) for name in ("inputs", "input_ids") if kwargs.get(name) is not None]
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is None:
            if not ids:
                raise ValueError("generate needs input_ids or inputs_embeds: the prompt is put before them")
            embeddings = model.get_input_embeddings()(ids[0])
        mask = kwargs.get("attention_mask")
        if mask is None:
            pad = model.config.pad_token_id
            mask = torch.ones(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
            if ids and pad is not None:
                mask = ids[0].ne(pad).long()
        kwargs["attention_mask"] = torch.cat([mask.new_ones(mask.shape[0], self.virtual_tokens), mask], dim=1)
        return args, kwargs | {"inputs_embeds": self.before(embeddings)}


def dimensions(model, config) -> dict[str, int]:
    """The config's fields about the model, given or found; ValueError names the one that cannot be found."""
    known = getattr(model, "config", None)
    known = getattr(known, "text_config", known)
    found = {}
    for field, name in (
        ("token_dim", "hidden_size"),
        ("num_attention_heads", "num_attention_heads"),
        ("num_layers", "num_hidden_layers"),
    ):
        value = getattr(config, field)
        found[field] = getattr(known, name, None) if value is None else value
        if found[field] is None:
            raise ValueError(f"{field}=None, and {type(model).__name__} has no config.{name}; give {field}")
    submodules = config.num_transformer_submodules
    if submodules is None:
        submodules = 2 if config.task_type == TaskType.SEQ_2_SEQ_LM or is_encoder_decoder(model) else 1
    return found | {"num_transformer_submodules": submodules}


def plan(tuner, config: PromptTuningConfig) -> list:
    """No module is replaced; ValueError if the model has no embedding of the prompt's width."""
    dim = dimensions(tuner.model, config)["token_dim"]
    embedding = getattr(tuner.model, "get_input_embeddings", lambda: None)()
    if embedding is None or embedding.weight.shape[1] != dim:
        has = "none" if embedding is None else f"of {embedding.weight.shape[1]}"
        raise ValueError(
            f"prompt tuning with token_dim={dim} needs input embeddings of that width; the model has {has}"
        )
    return []


def complete(tuner, config, targets) -> None:
    for field, value in dimensions(tuner.model, config).items():
        setattr(config, field, value)


def shapes(tuner, config, targets) -> dict[str, torch.Size]:
    found = dimensions(tuner.model, config)
    rows = config.num_virtual_tokens * found["num_transformer_submodules"]
    return {FILE_NAME: torch.Size([rows, found["token_dim"]])}


def add(tuner, adapter, config, targets, autocast, fresh) -> None:
    rows = config.num_virtual_tokens * config.num_transformer_submodules
    words = tuner.model.get_input_embeddings()
    chosen = _initial_tokens(config, rows, words.weight.shape[0]) if fresh and not config.inference_mode else None
    encoder = PromptEmbedding(rows, config.token_dim, config.num_virtual_tokens, counts_positions(tuner.model))
    if fresh and not config.inference_mode and config.prompt_tuning_init == PromptTuningInit.SAMPLE_VOCAB:
        chosen = torch.randint(0, words.weight.shape[0], (rows,))
    if chosen is not None:
        with torch.no_grad():
            encoder.embedding.weight.copy_(words(chosen.to(words.weight.device)))
    prompts(tuner).prompt_encoder[adapter] = encoder.to(words.weight.device)


def _initial_tokens(config, rows, vocabulary):
    """The ids of the text's tokens, again and again until they suffice; None unless the config asks for a text.

    Raises ValueError: there is no such tokenizer, it is another model's, or the text has too many tokens.
    """
    if config.prompt_tuning_init != PromptTuningInit.TEXT:
        return None
    from transformers import AutoTokenizer

    options = {k: v for k, v in (config.tokenizer_kwargs or {}).items() if k != "trust_remote_code"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **options)
    except OSError as error:
        raise ValueError(
            f"tokenizer_name_or_path={config.tokenizer_name_or_path!r} gives no tokenizer: {error}"
        ) from None
    ids = tokenizer(config.prompt_tuning_init_text)["input_ids"]
    if not ids or len(ids) > rows:
        raise ValueError(
            f"prompt_tuning_init_text={config.prompt_tuning_init_text!r} has {len(ids)} tokens; num_virtual_tokens="
            f"{config.num_virtual_tokens} takes 1 to {rows} of them"
        )
    if max(ids) >= vocabulary:
        raise ValueError(
            f"tokenizer_name_or_path={config.tokenizer_name_or_path!r} gives token {max(ids)}, and the model has "
            f"embeddings of {vocabulary}; give the model's own tokenizer"
        )
    return torch.tensor((ids * math.ceil(rows / len(ids)))[:rows])


def prompts(tuner) -> PromptLayer:
    """The tuner's PromptLayer, made and hooked into the model when it is first asked for."""
    if tuner.prompts is None:
        from .prefix import cache_owner

        tuner.prompts = PromptLayer()
        tuner.prompts.watch(tuner.model, cache_owner(tuner.model))
    return tuner.prompts


def tensors(tuner, adapter) -> dict[str, torch.Tensor]:
    return {FILE_NAME: tuner.prompts.prompt_encoder[adapter].file_tensor()}
