"""Converts one record of training data, in any of the usual formats, to a conversation.

A conversation is a list of {"role": ..., "content": ...}. A prompt with its completion becomes two messages.
"""

from dataclasses import dataclass

from .. import json_text
from ..errors import UserError
from ..text import cut, quoted

ROLES = ("system", "user", "assistant")
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
# {"from" of a ShareGPT turn: role}
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
FORMS = """\
{"messages": [{"role": ..., "content": ...}]}, {"prompt": ..., "completion": ...} (or "response"), \
{"question": ..., "answer": ...}, ShareGPT's {"conversations": [{"from": ..., "value": ...}]}, \
Alpaca's {"instruction": ..., "input": ..., "output": ...}"""


@dataclass(frozen=True)
class Example:
    messages: tuple[dict[str, str], ...]
    source: str  # "file:line" or "topic:number", for error messages
    product: object = None  # of the record, unchecked

    @property
    def questions(self) -> tuple[str, ...]:
        """The user's messages, in lower case and with single spaces: examples with a common one stay together in a
        split."""
        said = [m["content"] for m in self.messages if m["role"] == "user"]
        return tuple(" ".join(text.lower().split()) for text in said or [self.messages[0]["content"]])


def conversation(record: dict, source: str) -> Example:
    """The conversation of one record. `source` names the record in errors.

    The formats, in this order: "messages"; ShareGPT's "conversations"; Alpaca's "instruction", "input" and "output"; a
    pair of columns in PAIRS. In the last three formats "system" is the system message. A list that a table stores as
    text is parsed as JSON. UserError for any other record.
    """
    if record.get("messages") is not None:
        return Example(check_messages(_listed(record["messages"], source), source), source, record.get("product"))
    if record.get("conversations") is not None:
        turns = _sharegpt(_listed(record["conversations"], source), source)
    elif "instruction" in record and "output" in record:
        question = record["instruction"]
        if record.get("input") and isinstance(question, str) and isinstance(record["input"], str):
            question = f"{question}\n\n{record['input']}"
        turns = _pair(question, record["output"])
    elif pair := next((pair for pair in PAIRS if pair[0] in record and pair[1] in record), None):
        turns = _pair(record[pair[0]], record[pair[1]])
    else:
        keys = cut(", ".join(map(str, record)) or "none")
        raise UserError(f"{source}: expected one of {FORMS}; the keys are: {keys}")
    if record.get("system"):
        turns = [{"role": "system", "content": record["system"]}, *turns]
    return Example(check_messages(turns, source), source, record.get("product"))


def _pair(question, answer) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _listed(value, source: str):
    return json_text.parse(value, source) if isinstance(value, str) else value


def _sharegpt(turns, source: str) -> list[dict]:
    if not isinstance(turns, list):
        raise UserError(f'{source}: "conversations" must be a list of turns')
    messages = []
    for number, turn in enumerate(turns, 1):
        if isinstance(turn, dict) and {"role", "content"} <= turn.keys():
            messages.append(turn)
        elif isinstance(turn, dict) and {"from", "value"} <= turn.keys():
            speaker = turn["from"]
            if not isinstance(speaker, str) or speaker not in SPEAKERS:
                raise UserError(
                    f"{source}: turn {number} is from {quoted(speaker)}; accepted are {', '.join(SPEAKERS)}"
                )
            messages.append({"role": SPEAKERS[speaker], "content": turn["value"]})
        else:
            raise UserError(f'{source}: turn {number} must be an object with "from" and "value"')
    return messages


def check_messages(messages, source: str) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise UserError(f'{source}: "messages" must be a list of at least one message')
    checked = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise UserError(f'{source}: message {number} must be an object with "role" and "content"')
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UserError(f"{source}: message {number} has the role {quoted(role)}; accepted are {', '.join(ROLES)}")
        if not isinstance(content, str) or (role == "assistant" and not content.strip()):
            raise UserError(f"{source}: message {number} ({role}) must have text as its content")
        json_text.check_text(content, f"{source}: message {number} ({role})")
        checked.append({"role": role, "content": content})
    if all(m["role"] != "assistant" for m in checked):
        raise UserError(f"{source}: no message has the role assistant, so there is no answer to learn")
    return tuple(checked)
