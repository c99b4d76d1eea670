"""Merges an adapter into a base model's weights, and saves the merged model."""

from pathlib import Path

import torch
from safetensors import SafetensorError

import pypeft_fast

from ..base_models import load_base
from ..chat_template import template_in
from ..errors import UserError, as_user_error
from ..library_errors import LIBRARY_ERRORS
from ..whole_files import new_folder


def merged(base, adapter: Path):
    """The base model with the adapter merged into its weights, and without adapter layers.

    UserError if the files do not fit the base, the method cannot be merged, a merged weight is not finite, or the
    base's architecture cannot store a bias that BitFit adds.
    """
    with as_user_error(f"`adapter` {adapter} cannot be loaded", LIBRARY_ERRORS):
        model = pypeft_fast.PeftModel.from_pretrained(base, adapter)
    config = model.peft_config[model.active_adapter]
    if config.is_prompt_learning or config.peft_type == "BOTTLENECK":
        raise UserError(
            f"`adapter` {adapter} is of the method {config.peft_type.value}, which has no weights to fold into the "
            "base; use it as an adapter"
        )
    with as_user_error(f"`adapter` {adapter} cannot be merged", LIBRARY_ERRORS):
        model = model.merge_and_unload(safe_merge=True)
    _give_biases_a_place(model, adapter)
    return model


def save_merged(model: str, adapter: Path, output: Path, dtype="float32") -> None:
    """Writes a base model with an adapter merged into a new folder; after an error there is no folder.

    The tokenizer has the chat template of the adapter, if the adapter has one.
    model: a name for `load_base`. UserError as from `load_base` and `merged`, or if the folder cannot be written.
    """
    base, tokenizer = load_base(model, dtype)
    whole = merged(base, adapter)
    kinds = (OSError, RuntimeError, SafetensorError)
    with as_user_error(f"`output` {output} cannot be written", kinds), new_folder(output) as scratch:
        tokenizer.chat_template = template_in(adapter) or tokenizer.chat_template
        tokenizer.save_pretrained(scratch)
        whole.save_pretrained(scratch)


def _give_biases_a_place(model, adapter: Path) -> None:
    """Sets the config's flags for the biases that BitFit has added, so that transformers loads them with the weights.

    UserError if this architecture has no such biases, since transformers would ignore them.
    """
    have = set(model.state_dict())
    if have <= _parameters_of(model):
        return
    for flag in ("attention_bias", "mlp_bias"):
        if getattr(model.config, flag, None) is False:
            setattr(model.config, flag, True)
    if have != _parameters_of(model):
        raise UserError(
            f"`adapter` {adapter} adds biases where {type(model).__name__} has none, so that no model's files can hold "
            "them; use it as an adapter"
        )


def _parameters_of(model) -> set[str]:
    """The names of the tensors in the files of a model with this model's config."""
    with torch.device("meta"):
        return set(type(model)(model.config).state_dict())
