"""Answers of the base model and of the adapter to a few questions of the data, for report.html."""

import math
import time
from dataclasses import dataclass

import torch
import transformers

from ..chat import Chat
from ..data.records import Example
from ..errors import UserError

TOKENS = 64  # of an answer
SECONDS = 15.0  # of an answer
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "use_cache": True}


@dataclass(frozen=True)
class Answered:
    """A question, the answer in the data, and the answers of the base model and of the adapter."""

    question: str
    expected: str
    base: str
    adapter: str


def answered(model, tokenizer, examples: list[Example], count: int, until: float = math.inf) -> list[Answered]:
    """The answers to the first questions of at most `count` examples, spread over the list, by greedy decoding.

    model: a PeftModel whose adapter is active. An answer has at most TOKENS tokens and takes about SECONDS at most. If
    the model cannot answer, the reason takes the place of the answer. until: a time of time.monotonic after which no
    further question is answered.
    """
    chat, found = Chat(model, tokenizer, {}), []
    for example in spread(examples, count):
        if time.monotonic() > until:
            break
        asked = first_question(example)
        with model.disable_adapter():
            base = _answer(chat, asked)
        expected = example.messages[len(asked)]["content"]
        found.append(Answered(written(asked), expected, base, _answer(chat, asked)))
    return found


def spread(examples: list[Example], count: int) -> list[Example]:
    """At most `count` examples with different first questions, at equal distances in the list."""
    different = list({written(first_question(its)): its for its in reversed(examples) if first_question(its)}.values())
    different.reverse()
    count = min(count, len(different))
    return [different[i * len(different) // count] for i in range(count)]


def first_question(example: Example) -> list[dict[str, str]]:
    """The messages before the first answer; none if the conversation begins with an answer."""
    end = next(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
    return list(example.messages[:end])


def written(messages: list[dict[str, str]]) -> str:
    """The messages as one text; with more than one, each has its role in front."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _answer(chat: Chat, messages) -> str:
    limit = Limit(chat.tokenizer.eos_token_id)
    try:
        text = chat.answer(messages, max_new_tokens=TOKENS + 1, stopping_criteria=[limit], **GREEDY)
    except UserError as error:
        return f"(no answer: {error})"
    return f"{text} …" if limit.has_cut else text


class Limit(transformers.StoppingCriteria):
    """Ends an answer after TOKENS tokens, and after the token at which SECONDS are over."""

    def __init__(self, end: int | None):
        self.has_cut = False
        self._end, self._count, self._until = end, 0, time.monotonic() + SECONDS

    def __call__(self, input_ids, scores, **kwargs):
        self._count += 1
        is_over = self._count >= TOKENS or time.monotonic() > self._until
        self.has_cut = is_over and int(input_ids[0, -1]) != self._end
        return torch.full((len(input_ids),), is_over, device=input_ids.device)
