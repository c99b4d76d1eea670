"""The examples of a run as tokens, those to train on and those held out."""

from dataclasses import dataclass

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
    dropped: int  # examples of which max_length leaves no answer token
    cut: int = 0  # of the others, those that are longer than max_length
    longest: int = 0  # tokens of the longest example before cutting


def prepare(tokenizer, examples: list[Example], settings: Settings, held_out: list[Example] | None = None) -> Data:
    """Tokenises the examples and those held out, which are split from them if they are not given.

    UserError if max_length leaves nothing to train on or nothing held out.
    """
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
    )


def held_out_data(tokenizer, examples: list[Example], max_length: int) -> Data:
    """Examples that are all held out. UserError if max_length leaves nothing of their answers."""
    encoded = encode_all(tokenizer, examples, max_length)
    if not encoded.examples:
        raise UserError(f"`max_length` {max_length} leaves no token of an answer in any held-out example; raise it")
    return Data([], encoded.examples, examples, encoded.dropped, encoded.cut, encoded.longest)
