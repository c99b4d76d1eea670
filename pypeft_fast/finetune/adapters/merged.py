"""A base model with an adapter folded into its weights, and the folder of such a model."""

from pathlib import Path

import torch
from safetensors import SafetensorError

import pypeft_fast

from ..base_models import load_base
from ..errors import UserError, as_user_error
from ..library_errors import LIBRARY_ERRORS
from ..whole_files import new_folder


def merged(base, adapter: Path):
    """The base model, its weights with the adapter's update, and no adapter layers any more.

    UserError if the files do not fit the base, the method has nothing to fold in, a merged weight is not finite, or a
    bias has no place in the base's files.
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
    """Writes a base model, named as `load_base` takes it, with an adapter folded in: a new folder, whole or not at all.

    UserError as `load_base` and `merged` raise it, or if the folder cannot be written.
    """
    base, tokenizer = load_base(model, dtype)
    whole = merged(base, adapter)
    kinds = (OSError, RuntimeError, SafetensorError)
    with as_user_error(f"`output` {output} cannot be written", kinds), new_folder(output) as scratch:
        tokenizer.save_pretrained(scratch)
        whole.save_pretrained(scratch)


def _give_biases_a_place(model, adapter: Path) -> None:
    """Lets the config ask for the biases that BitFit has added, so that they are read back with the weights.

    UserError if this architecture has no such biases: transformers would pass them by.
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
    """The names in the files of a model with this one's config."""
    with torch.device("meta"):
        return set(type(model)(model.config).state_dict())
