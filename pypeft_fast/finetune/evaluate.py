"""The loss of a base model on examples, by itself and with each of several adapters."""

from dataclasses import dataclass
from pathlib import Path

from .adapters.files import by_kind
from .base_models import load_base
from .chat import Chat
from .data.records import Example
from .data.tokens import Collator, check_ids, check_length
from .held_out import held_out_loss, target_tokens
from .training.prepare import Data, held_out_data


@dataclass(frozen=True)
class Evaluation:
    losses: dict[str, float]  # nats per token of the answers: "base", and each adapter by its name
    data: Data  # the examples as tokens, all of them held out

    @property
    def tokens(self) -> int:
        """How many tokens each loss is the mean of."""
        return target_tokens(self.data.held_out)


def evaluate(
    model: str,
    adapters: dict[str, Path],
    examples: list[Example],
    *,
    dtype="float32",
    quantize=None,
    max_length=512,
    batch_size=8,
) -> Evaluation:
    """The losses of a base model, named as `load_base` takes it, and of the adapters in these folders, by name.

    Adapters of another kind than the first, say IA3 beside LoRA, get a base model of their own.

    UserError: as `load_base` and `Chat` raise it, a max_length that leaves no answer or is longer than the model reads,
    or a tokenizer of another model.
    """
    base, tokenizer = load_base(model, dtype, quantize)
    data = held_out_data(tokenizer, examples, max_length)
    check_ids(base, [token for encoded in data.held_out for token in encoded.input_ids])
    check_length(base, max(len(e.input_ids) for e in data.held_out), None, max_length)
    collator = Collator.of(tokenizer)
    losses = {"base": held_out_loss(base.eval(), data.held_out, collator, batch_size)}
    for number, group in enumerate(by_kind(adapters).values()):
        chat = Chat(load_base(model, dtype, quantize)[0] if number else base, tokenizer, group)
        for name in group:
            with chat.using(name):
                losses[name] = held_out_loss(chat.model, data.held_out, collator, batch_size)
    return Evaluation({name: losses[name] for name in ("base", *adapters)}, data)
