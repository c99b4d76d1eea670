"""Renders conversations with the tokenizer's chat template, and locates the answers in the text."""

import os

from ..errors import UserError, as_user_error
from ..library_errors import LIBRARY_ERRORS
from ..text import quoted
from .records import Example

SHOWN = 30  # characters of a text in a message


def render_prompt(tokenizer, messages) -> str:
    """The prompt of the next answer.

    The tokenizer's chat template renders the prompt. Without a chat template the prompt is the text of the only
    message; UserError if there are several messages.
    """
    if tokenizer.chat_template is None:
        if len(messages) != 1:
            raise UserError(f"this tokenizer has no chat template, so it cannot render {len(messages)} messages")
        return messages[0]["content"]
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def render(tokenizer, example: Example) -> tuple[str, list[tuple[int, int]]]:
    """(text of a whole conversation, [(start, end)] of each answer in the text, including the end token).

    UserError if the chat template refuses the conversation, or if an answer cannot be located: the prompt of the answer
    is not how the conversation begins, or a later message changes the text of an earlier one.
    """
    from jinja2 import TemplateError

    messages = list(example.messages)
    if tokenizer.chat_template is None:
        if [m["role"] for m in messages] != ["user", "assistant"]:
            raise UserError(
                f"{example.source}: this tokenizer has no chat template, so each example must be one "
                '"prompt" and its "completion"'
            )
        prompt, answer = messages[0]["content"], messages[1]["content"] + (tokenizer.eos_token or "")
        return prompt + answer, [(len(prompt), len(prompt) + len(answer))]
    spans = []
    with as_user_error(f"{example.source}: the chat template refuses it", (TemplateError, *LIBRARY_ERRORS)):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = render_prompt(tokenizer, messages[:i]) if i else ""
                through = tokenizer.apply_chat_template(messages[: i + 1], tokenize=False)
                if not through.startswith(before) and not spans:
                    raise UserError(_no_prompt(example.source, i, before, through))
                if not (text.startswith(through) and through.startswith(before)):
                    raise UserError(
                        f"{example.source}: the chat template renders message {i + 1} differently within the "
                        "conversation, so its answer cannot be located; give conversations of one turn"
                    )
                spans.append((len(before), len(through)))
    return text, spans


def _no_prompt(source: str, index: int, before: str, through: str) -> str:
    """The message for a template whose prompt of the first answer, message `index`, does not begin the conversation."""
    same = len(os.path.commonprefix([before, through]))
    prompt, conversation = (quoted(text[same : same + SHOWN]) for text in (before, through))
    return (
        f"{source}: the chat template writes {prompt} in the prompt of message {index + 1} where the conversation with "
        f"this message has {conversation}, so the answer cannot be located; write the prompt of an answer as the "
        "conversation begins: nothing after the last message but, if add_generation_prompt is true, the start of an "
        "answer"
    )


def check_answers_differ(tokenizer, example: Example) -> None:
    """UserError if the chat template renders this example, which it accepts, and another answer to it as one text."""
    if tokenizer.chat_template is None:
        return
    last = max(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
    messages = list(example.messages[: last + 1])
    other = [*messages[:-1], {"role": "assistant", "content": messages[-1]["content"] + " and more"}]
    text, changed = (tokenizer.apply_chat_template(its, tokenize=False) for its in (messages, other))
    if text == changed:
        raise UserError(
            f"{example.source}: the chat template writes no answer: it renders {quoted(text[:SHOWN])} whatever the "
            "answer is, and nothing can be learned; write the messages in the `chat_template`: {% for message in "
            "messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
        )
