"""Turns the messages of a request into the tokens of a prompt."""

import copy
import threading
from pathlib import Path

from ..finetune.chat_template import FILE, use_template
from ..finetune.data.rendering import render_prompt
from ..finetune.data.tokens import check_ids
from ..finetune.errors import UserError, as_user_error
from ..finetune.library_errors import LIBRARY_ERRORS
from .errors import ApiError, refused


class Prompts:
    """A tokenizer of its own, which one thread at a time uses: a fast tokenizer is not safe in several threads."""

    def __init__(self, model, tokenizer, context: int):
        self._model = model
        self._tokenizer = copy.deepcopy(tokenizer)
        self._own_template = tokenizer.chat_template
        self._context = context
        self._lock = threading.Lock()

    def encode(self, messages: list[dict[str, str]], template: str | None = None) -> list[int]:
        """The tokens of the prompt, by the adapter's chat template; None: by the tokenizer's.

        ApiError 400 if the chat template refuses the messages, or the prompt is empty or leaves no room for an answer.
        """
        try:
            with self._lock:
                self._tokenizer.chat_template = self._own_template if template is None else template
                ids = self._encode(messages)
            if not ids:
                raise UserError("the prompt is empty")
            check_ids(self._model, ids)
        except UserError as error:
            raise refused(error, param="messages") from error
        if len(ids) >= self._context:
            raise ApiError(
                400,
                f"the prompt has {len(ids)} tokens, and a prompt with its answer has at most {self._context} here; "
                "shorten the messages",
                code="context_length_exceeded",
                param="messages",
            )
        return ids

    def check_template(self, folder: Path) -> None:
        """UserError if the chat template of an adapter's folder cannot be read, or is not valid Jinja."""
        if (folder / FILE).is_file():
            with self._lock:
                use_template(self._tokenizer, str(folder / FILE))

    def _encode(self, messages):
        from jinja2 import TemplateError

        with as_user_error("the model's chat template refuses the messages", (TemplateError, *LIBRARY_ERRORS)):
            prompt = render_prompt(self._tokenizer, messages)
        plain = self._tokenizer.chat_template is None
        return self._tokenizer(prompt, add_special_tokens=plain)["input_ids"]
