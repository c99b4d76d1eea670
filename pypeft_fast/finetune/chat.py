"""Chat: the answers of a model in a conversation, with one of several adapters or without an adapter."""

import contextlib
from pathlib import Path

import torch

from .adapters.files import check_files
from .chat_template import template_in
from .data.rendering import render_prompt
from .data.tokens import check_ids, positions
from .errors import UserError, as_user_error
from .json_text import check_text
from .library_errors import LIBRARY_ERRORS


class Chat:
    """A base model with loaded adapters. `current` is the name of the adapter in use, None for the base model alone.

    The tokenizer has the chat template that the adapter in use was trained with.
    """

    def __init__(self, model, tokenizer, adapters: dict[str, Path]):
        import pypeft_fast

        self.tokenizer = tokenizer
        self._templates = {None: tokenizer.chat_template}
        self.adapters = list(adapters)
        self.current = self.adapters[0] if adapters else None
        self.model = model
        for number, (name, path) in enumerate(adapters.items()):
            check_files(path)
            self._templates[name] = template_in(path) or tokenizer.chat_template
            with as_user_error(f"`adapter` {path} cannot be loaded", LIBRARY_ERRORS):
                if number == 0:
                    self.model = pypeft_fast.PeftModel.from_pretrained(model, path, adapter_name=name)
                else:
                    self.model.load_adapter(path, name)
        self.model.eval()
        self.use(self.current)

    def use(self, name: str | None) -> None:
        """Selects the adapter for the next answers; None selects the base model. UserError for an unknown adapter."""
        if name is not None:
            if name not in self.adapters:
                raise UserError(f"no adapter {name!r}; there are: {', '.join(self.adapters) or 'none'}")
            self.model.set_adapter(name)
        self.current = name
        self.tokenizer.chat_template = self._templates[name]

    @contextlib.contextmanager
    def using(self, name: str | None):
        """Selects the adapter; in the block the model computes with it. None: the model computes without an adapter."""
        self.use(name)
        with self.model.disable_adapter() if self.adapters and name is None else contextlib.nullcontext():
            yield

    @torch.no_grad()
    def answer(self, messages, streamer=None, **generation) -> str:
        """The answer to the conversation so far. A streamer gets the answer token by token.

        Raises UserError if a message is not valid Unicode, if the tokenizer's chat template rejects the conversation or
        returns an empty prompt, or if the conversation has more tokens than the model has positions.
        """
        from jinja2 import TemplateError

        for message in messages:
            check_text(message["content"], f"the message of the role {message['role']}")
        kinds = (TemplateError, *LIBRARY_ERRORS)
        with as_user_error(f"the tokenizer's chat template refuses {_roles(messages)}", kinds):
            prompt = render_prompt(self.tokenizer, messages)
        plain = self.tokenizer.chat_template is None
        inputs = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=plain).to(self.model.device)
        if not inputs["input_ids"].shape[1]:
            raise UserError("the prompt is empty, and this tokenizer has no chat template to put something before it")
        check_ids(self.model, inputs["input_ids"][0].tolist())
        pad = self.tokenizer.pad_token_id
        generation["pad_token_id"] = self.tokenizer.eos_token_id if pad is None else pad
        generation |= self._limit(inputs["input_ids"].shape[1], generation.get("max_new_tokens"))
        kinds = (ValueError, TypeError, IndexError, OverflowError, RuntimeError)
        with as_user_error("the model cannot answer", kinds):
            with self.using(self.current):
                tokens = self.model.generate(**inputs, streamer=streamer, **generation)
        return self.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _limit(self, length: int, wanted: int | None) -> dict[str, int]:
        """{"max_new_tokens": n}, n at most the model's free positions; {} without a limit on positions.

        UserError if no position is free.
        """
        room = positions(self.model)
        if room is None:
            return {}
        config = getattr(self.model, "peft_config", {}).get(self.current)
        length += getattr(config, "num_virtual_tokens", None) or 0
        if length >= room:
            raise UserError(
                f"the conversation is {length} tokens long, and this model reads at most {room}; begin anew"
            )
        return {"max_new_tokens": room - length if wanted is None else min(wanted, room - length)}


def _roles(messages) -> str:
    return "a message of the role " + " after ".join(m["role"] for m in reversed(messages))
