"""Tokenises the training and held-out examples of a run."""

from dataclasses import dataclass

from ..chat_template import use_template
from ..data.packing import pack
from ..data.records import Example
from ..data.split import split
from ..data.tokens import Encoded, encode_all
from ..errors import UserError
from .settings import Settings


@dataclass(frozen=True)
class Data:
    train: list[Encoded]
    held_out: list[Encoded]
    held_out_examples: list[Example]
    dropped: int  # number of examples without a target token within max_length
    cut: int = 0  # number of kept examples that were longer than max_length
    longest: int = 0  # tokens of the longest example before cutting
    packed: list[Encoded] | None = None  # the training examples in packed rows
    chat_template: str | None = None  # the text of a template from a file
    has_ends: bool = True  # whether a special token is a target: the model learns to end its answers

    @property
    def rows(self) -> list[Encoded]:
        """What a batch holds several of: packed rows, or training examples."""
        return self.train if self.packed is None else self.packed


def prepare(tokenizer, examples: list[Example], settings: Settings, held_out: list[Example] | None = None) -> Data:
    """Tokenises the training and the held-out examples. Without `held_out`, a part of `examples` is held out.

    The tokenizer gets the chat template of the settings. UserError if max_length leaves no target token in the training
    examples, or none in the held-out examples; also as from `use_template`.
    """
    template = use_template(tokenizer, settings.chat_template) if settings.chat_template else None
    train = examples
    if held_out is None:
        train, held_out = split(examples, settings.eval_fraction, settings.seed)
    kept = encode_all(tokenizer, train, settings.max_length)
    if not kept.examples:
        raise UserError(
            f"`max_length` {settings.max_length} leaves no token of an answer in any training example; raise it"
        )
    other = held_out_data(tokenizer, held_out, settings.max_length) if held_out else Data([], [], [], 0)
    return Data(
        kept.examples,
        other.held_out,
        held_out,
        dropped=kept.dropped + other.dropped,
        cut=kept.cut + other.cut,
        longest=max(kept.longest, other.longest),
        chat_template=template,
        has_ends=not set(tokenizer.all_special_ids).isdisjoint(t for e in kept.examples for t in e.labels),
        packed=pack(kept.examples, settings.max_length) if settings.packing else None,
    )


def held_out_data(tokenizer, examples: list[Example], max_length: int) -> Data:
    """A Data in which all examples are held out. UserError if max_length leaves no target token."""
    encoded = encode_all(tokenizer, examples, max_length)
    if not encoded.examples:
        raise UserError(f"`max_length` {max_length} leaves no token of an answer in any held-out example; raise it")
    return Data([], encoded.examples, examples, encoded.dropped, encoded.cut, encoded.longest)
