"""Converts conversations to token ids and labels. Only the assistant's tokens are targets of the loss."""

import itertools
from dataclasses import dataclass

import torch

from ..errors import UserError
from .records import Example
from .rendering import check_answers_differ, render

IGNORE = -100  # the label that torch's cross entropy ignores


@dataclass(frozen=True)
class Encoded:
    input_ids: list[int]
    labels: list[int]  # the token id for the assistant's tokens, IGNORE for other tokens; not shifted
    positions: list[int] | None = None  # of a packed row: from 0 again at each of its examples


def encode(tokenizer, example: Example) -> Encoded:
    """Token ids and labels of one conversation.

    Prompts and answers are tokenised separately, so an answer follows exactly the tokens that generation gets as its
    prompt. Whitespace that a template writes after an answer's end token is no target, since generation stops at the
    end token.
    """
    text, spans = render(tokenizer, example)
    special = set(tokenizer.all_special_ids)
    ids, labels = [], []
    for tokens, is_answer in _tokenise(tokenizer, text, spans):
        targets = len(tokens) if is_answer else 0
        ends = [i for i, token in enumerate(tokens[:targets]) if token in special]
        if ends and not tokenizer.decode(tokens[ends[-1] + 1 :]).strip():
            targets = ends[-1] + 1
        ids += tokens
        labels += tokens[:targets] + [IGNORE] * (len(tokens) - targets)
    return Encoded(ids, labels)


def _tokenise(tokenizer, text: str, spans: list[tuple[int, int]]) -> list[tuple[list[int], bool]]:
    """[(tokens of a piece of the text, whether the piece is an answer)], consecutive."""
    plain = tokenizer.chat_template is None  # a chat template writes the first special token itself
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    pieces = [
        (tokenizer(text[a:b], add_special_tokens=plain and a == 0)["input_ids"], (a, b) in spans)
        for a, b in zip(edges, edges[1:], strict=False)
        if a < b
    ]
    whole = tokenizer(text, add_special_tokens=plain, return_offsets_mapping=True)
    ids = whole["input_ids"]
    apart = [token for tokens, _ in pieces for token in tokens]
    if tokenizer.decode(apart) == tokenizer.decode(ids):
        return pieces
    # This tokenizer adds a space at the start of every piece, as SentencePiece does. So the answers are located among
    # the tokens of the whole text by their character offsets instead.
    inside = [any(start <= a < b <= end for start, end in spans) for a, b in whole["offset_mapping"]]
    return [([ids[i] for i, _ in run], key) for key, run in itertools.groupby(enumerate(inside), lambda pair: pair[1])]


def check_ids(model, ids: list[int]) -> None:
    """UserError if a token has no row in the model's embedding: the tokenizer belongs to another model."""
    rows = model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        raise UserError(
            f"the tokenizer gives token {max(ids)}, but the model's vocabulary has {rows}; they do not belong together"
        )


def positions(model) -> int | None:
    """The number of positions of a model with a table of position embeddings; None for a model without a table."""
    most = getattr(model.config, "max_position_embeddings", None)
    words = model.get_input_embeddings()
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not words]
    # Some tables have up to two more rows, for padding.
    return most if most is not None and any(most <= rows <= most + 2 for rows in tables) else None


def check_length(model, longest: int, virtual_tokens: int | None, max_length: int) -> None:
    """UserError if an example has more tokens than the model has positions."""
    room = positions(model)
    if room is not None and longest + (virtual_tokens or 0) > room:
        virtual = f" and {virtual_tokens} virtual tokens" if virtual_tokens else ""
        raise UserError(
            f"`max_length` {max_length}: an example has {longest} tokens{virtual}, and this model reads at most {room}"
        )


@dataclass(frozen=True)
class EncodedSet:
    examples: list[Encoded]
    dropped: int  # number of examples without a target token within max_length
    cut: int  # number of kept examples that were longer than max_length
    longest: int  # tokens of the longest example before cutting


def encode_all(tokenizer, examples: list[Example], max_length: int) -> EncodedSet:
    """All examples, cut after max_length tokens; examples without a target token are dropped.

    UserError: see `render` and `check_answers_differ`; also for a tokenizer without character offsets.
    """
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer {type(tokenizer).__name__} gives no character offsets; a fast one is needed")
    whole = [encode(tokenizer, e) for e in examples]
    check_answers_differ(tokenizer, examples[0])
    # The model predicts each token from the tokens before it, so the first token is never a target.
    kept = [e for e in whole if any(label != IGNORE for label in e.labels[1:max_length])]
    lengths = [len(e.input_ids) for e in kept]
    return EncodedSet(
        [Encoded(e.input_ids[:max_length], e.labels[:max_length]) for e in kept],
        dropped=len(whole) - len(kept),
        cut=sum(length > max_length for length in lengths),
        longest=max((len(e.input_ids) for e in whole), default=0),
    )


@dataclass(frozen=True)
class Collator:
    """Pads a batch on the right to its longest example: ids with pad_id, labels with IGNORE, the mask with 0.

    A batch of packed rows has position_ids instead of a mask; from these transformers makes the mask in which examples
    of one row do not attend to each other. The padding has the position 0.
    """

    pad_id: int

    @classmethod
    def of(cls, tokenizer) -> "Collator":
        """A Collator with the tokenizer's padding token, or its end token, or 0; attention masks it in any case."""
        known = [i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None]
        return cls(known[0] if known else 0)

    def __call__(self, batch: list[Encoded]) -> dict[str, torch.Tensor]:
        longest = max(len(e.input_ids) for e in batch)

        def rows(values, padding):
            return torch.tensor([v + [padding] * (longest - len(v)) for v in values])

        if batch[0].positions is None:
            attention = {"attention_mask": rows([[1] * len(e.input_ids) for e in batch], 0)}
        else:
            attention = {"position_ids": rows([e.positions for e in batch], 0)}
        return {
            "input_ids": rows([e.input_ids for e in batch], self.pad_id),
            **attention,
            "labels": rows([e.labels for e in batch], IGNORE),
        }

    def together(self, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Several batches of this collator as one, their rows in this order, padded to the longest."""
        padding = {"input_ids": self.pad_id, "attention_mask": 0, "position_ids": 0, "labels": IGNORE}
        longest = max(batch["input_ids"].shape[1] for batch in batches)

        def padded(rows, value):
            return torch.nn.functional.pad(rows, (0, longest - rows.shape[1]), value=value)

        return {key: torch.cat([padded(batch[key], padding[key]) for batch in batches]) for key in batches[0]}
