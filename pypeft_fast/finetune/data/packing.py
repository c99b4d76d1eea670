"""Packs examples into rows of at most max_length tokens, whose examples do not attend to each other."""

import bisect

import torch

from ..errors import UserError, as_user_error
from ..library_errors import LIBRARY_ERRORS
from .tokens import IGNORE, Collator, Encoded

PROBE = 24  # tokens of each of two examples with which `use_packed` tries a model
TOLERANCE = 1e-2  # relative to the largest logit; bfloat16 rounds to 4e-3


def pack(examples: list[Encoded], max_length: int) -> list[Encoded]:
    """The rows: the longest examples first, each into the fullest row that has room for it (best-fit decreasing).

    The rows have all examples, and depend only on the examples and their order.
    """
    rows: list[list[Encoded]] = []
    rooms: list[tuple[int, int]] = []  # (tokens that are free, number of the row), sorted
    for example in sorted(examples, key=lambda e: -len(e.input_ids)):
        length = len(example.input_ids)
        at = bisect.bisect_left(rooms, (length, -1))
        room, number = rooms.pop(at) if at < len(rooms) else (max_length, len(rows))
        if number == len(rows):
            rows.append([])
        rows[number].append(example)
        bisect.insort(rooms, (room - length, number))
    return [joined(row) for row in rows]


def joined(examples: list[Encoded]) -> Encoded:
    """One row of these examples. The first token of each is no target, since the token before it is another's."""
    return Encoded(
        [token for e in examples for token in e.input_ids],
        [label for e in examples for label in [IGNORE, *e.labels[1:]]],
        [position for e in examples for position in range(len(e.input_ids))],
    )


@torch.no_grad()
def use_packed(model, examples: list[Encoded], collator: Collator) -> None:
    """Prepares a model for packed rows: it makes no cache in training, with which transformers ignores position_ids.

    UserError if the model's logits for an example depend on the example before it in a packed row.

    They do in models with a state instead of attention, and in models that ignore position_ids.
    """
    second = Encoded(examples[0].input_ids[:PROBE], examples[0].labels[:PROBE])
    first = Encoded(second.input_ids[::-1], second.labels)  # of no use but to be another text
    model.config.get_text_config().use_cache = False
    was_training = model.training
    model.eval()
    refused = "`packing` cannot be used with this model"
    with as_user_error(refused, LIBRARY_ERRORS):
        alone, together = (_logits(model, collator([row])) for row in (joined([second]), joined([first, second])))
    model.train(was_training)
    together = together[:, len(first.input_ids) :]
    if (together - alone).abs().max() > TOLERANCE * alone.abs().max():
        raise UserError(f"{refused}: the examples of a row would attend to each other; leave it out")


def _logits(model, batch) -> torch.Tensor:
    batch.pop("labels")
    return model(**{key: value.to(model.device) for key, value in batch.items()}).logits.float()
