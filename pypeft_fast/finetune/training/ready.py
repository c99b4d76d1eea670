"""A run that is ready to train: the base model with its adapter, and the examples as tokens."""

from dataclasses import dataclass

import transformers

from ..adapters.adapted import adapted
from ..base_models import load_base
from ..data.records import Example
from ..data.tokens import Collator, check_ids, check_length
from .prepare import Data, prepare
from .settings import Settings


@dataclass(frozen=True)
class Ready:
    """What `fine_tune` takes beside the settings."""

    model: object  # a PeftModel
    data: Data
    collator: Collator


def make_ready(settings: Settings, examples: list[Example], held_out: list[Example] | None = None) -> Ready:
    """Loads the base model, tokenises the examples, and adds the adapter, whose first values follow from the seed.

    UserError: as `load_base`, `prepare` and `adapted` raise it, a tokenizer of another model, or an example that is
    longer than the model reads.
    """
    base, tokenizer = load_base(settings.model, settings.dtype, settings.quantize)
    data = make_data(base, tokenizer, settings, examples, held_out)
    transformers.set_seed(settings.seed)
    return Ready(adapted(base, settings), data, Collator.of(tokenizer))


def make_data(base, tokenizer, settings: Settings, examples: list[Example], held_out: list[Example] | None) -> Data:
    """The examples as tokens that this base model reads. UserError: see `make_ready`."""
    data = prepare(tokenizer, examples, settings, held_out)
    check_ids(base, [token for encoded in data.train + data.held_out for token in encoded.input_ids])
    longest = max(len(encoded.input_ids) for encoded in data.train + data.held_out)
    check_length(base, longest, settings.virtual_tokens, settings.max_length)
    return data
