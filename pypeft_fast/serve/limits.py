"""The limits of a server, which bound its memory and its time."""

from dataclasses import dataclass

MOST_BYTES = 1 << 20  # of the body of a request
MOST_UNREAD = 4 << 20  # characters of prompts that wait for the tokenizer or are in it; one prompt may always wait
MESSAGE = 64  # characters as which each message counts beside its text
MOST_FIELDS = 64  # of an object in a body, since each unknown field is an error of its own
MOST_MESSAGES = 4096  # of a request; also texts of a message
BODY_SECONDS = 30.0  # in which a body has to arrive
MOST_STOPS = 4  # stop strings of a request, as in OpenAI's interface
LONGEST_STOP = 256  # characters
LONGEST_NAME = 100  # characters of an adapter's name
ANSWER = 256  # tokens of an answer to a request that names no number
CONTEXT = 4096  # tokens of a prompt with its answer, for a model that reads at least as many


@dataclass(frozen=True)
class Limits:
    """rows: of the batch. queue: requests that wait for a row. context: tokens of a prompt with its answer. cells: rows
    times columns of the cache of keys and values. adapters: loaded at once. prefill: tokens of
    prompts that are read between two steps of the batch."""

    rows: int = 64
    queue: int = 256
    context: int = CONTEXT
    cells: int = 65536
    adapters: int = 64
    prefill: int = 256


def context_of(model, wanted: int | None) -> int:
    """The tokens of a prompt with its answer: `wanted`, or CONTEXT, but at most the positions of the model."""
    positions = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min(n for n in (wanted or CONTEXT, positions) if n is not None)
