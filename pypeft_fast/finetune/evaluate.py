"""Evaluates a base model on examples, without an adapter and with each of several adapters."""

from dataclasses import dataclass
from pathlib import Path

from .adapters.files import by_kind
from .base_models import load_base
from .chat import Chat
from .chat_template import template_in
from .data.records import Example
from .data.tokens import Collator, check_ids, check_length
from .held_out import held_out_loss, target_tokens
from .training.prepare import Data, held_out_data


@dataclass(frozen=True)
class Evaluation:
    losses: dict[str, float]  # {"base" or an adapter's name: loss in nats per token of the answers}
    data: Data  # the examples as tokens, all held out

    @property
    def tokens(self) -> int:
        """The number of tokens over which each loss is the mean."""
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
    """The losses of a base model, a name for `load_base`, and of this base model with each adapter, {name: folder}.

    An adapter with a chat template of its own is evaluated on the examples in that template. Adapters of another
    peft_type than the first, for example IA3 after LoRA, are loaded on a base model of their own.

    UserError as from `load_base` and `Chat`; also if max_length leaves no token of an answer, if an example is longer
    than the model's positions, or if the tokenizer belongs to another model.
    """
    base, tokenizer = load_base(model, dtype, quantize)
    collator, own = Collator.of(tokenizer), tokenizer.chat_template
    templates = {name: template_in(folder) or own for name, folder in adapters.items()}
    datas = {}
    for template in {own: None, **dict.fromkeys(templates.values())}:
        tokenizer.chat_template = template
        datas[template] = _encoded(base, tokenizer, examples, max_length)
    data = datas[own]
    losses = {"base": held_out_loss(base.eval(), data.held_out, collator, batch_size)}
    for number, group in enumerate(by_kind(adapters).values()):
        chat = Chat(load_base(model, dtype, quantize)[0] if number else base, tokenizer, group)
        for name in group:
            with chat.using(name):
                held_out = datas[templates[name]].held_out
                losses[name] = held_out_loss(chat.model, held_out, collator, batch_size)
    return Evaluation({name: losses[name] for name in ("base", *adapters)}, data)


def _encoded(base, tokenizer, examples: list[Example], max_length: int) -> Data:
    data = held_out_data(tokenizer, examples, max_length)
    check_ids(base, [token for encoded in data.held_out for token in encoded.input_ids])
    check_length(base, max(len(e.input_ids) for e in data.held_out), None, max_length)
    return data
