"""Prepares a run: loads the base model, adds the adapter, and tokenises the examples."""

from dataclasses import dataclass

import transformers

from ..adapters.adapted import adapted
from ..base_models import load_base
from ..data.packing import use_packed
from ..data.records import Example
from ..data.tokens import Collator, check_ids, check_length
from .prepare import Data, prepare
from .settings import Settings


@dataclass(frozen=True)
class Ready:
    """The arguments of `fine_tune` besides the settings, and the tokenizer."""

    model: object  # a PeftModel
    data: Data
    collator: Collator
    tokenizer: object


def make_ready(settings: Settings, examples: list[Example], held_out: list[Example] | None = None) -> Ready:
    """Loads the base model, tokenises the examples, and adds the adapter, initialised from the settings' seed.

    UserError as from `load_base`, `prepare`, `adapted` and `use_packed`; also if the tokenizer belongs to another
    model, or an example has more tokens than the model has positions.
    """
    base, tokenizer = load_base(settings.model, settings.dtype, settings.quantize)
    data = make_data(base, tokenizer, settings, examples, held_out)
    transformers.set_seed(settings.seed)
    return Ready(adapted(base, settings), data, Collator.of(tokenizer), tokenizer)


def make_data(base, tokenizer, settings: Settings, examples: list[Example], held_out: list[Example] | None) -> Data:
    """The examples as tokens that this base model reads. UserError: see `make_ready`."""
    data = prepare(tokenizer, examples, settings, held_out)
    check_data(base, data, settings)
    if settings.packing:
        use_packed(base, data.train, Collator.of(tokenizer))
    return data


def check_data(base, data: Data, settings: Settings) -> None:
    """UserError if the tokenizer belongs to another model, or an example has more tokens than the model's positions."""
    check_ids(base, [token for encoded in data.train + data.held_out for token in encoded.input_ids])
    longest = max(len(encoded.input_ids) for encoded in data.train + data.held_out)
    check_length(base, longest, settings.virtual_tokens, settings.max_length)
