"""The JSON of answers in the OpenAI chat-completions interface."""

import json
import secrets
import time

from .adapters import Adapter, Adapters
from .generation import End


class Reply:
    """Makes the objects of one answer, which share an id."""

    def __init__(self, model: str):
        self._common = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def whole(self, text: str, end: End) -> dict:
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end.reason}
        return {**self._common, "object": "chat.completion", "choices": [choice], "usage": usage(end)}

    def begin(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def end(self, end: End) -> bytes:
        return self._chunk({}, end.reason)

    def usage(self, end: End) -> bytes:
        return event({**self._common, "object": "chat.completion.chunk", "choices": [], "usage": usage(end)})

    def _chunk(self, delta: dict, reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._common, "object": "chat.completion.chunk", "choices": [choice]})


DONE = b"data: [DONE]\n\n"


def event(value: dict) -> bytes:
    """A server-sent event with this JSON."""
    text = json.dumps(value, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


def usage(end: End) -> dict[str, int]:
    both = end.prompt_tokens + end.completion_tokens
    return {"prompt_tokens": end.prompt_tokens, "completion_tokens": end.completion_tokens, "total_tokens": both}


def model_object(adapter: Adapter, base: Adapter) -> dict:
    """An entry of GET /v1/models. parent: the base model of an adapter."""
    parent = None if adapter is base else base.name
    return {
        "id": adapter.name,
        "object": "model",
        "created": adapter.created,
        "owned_by": "pypeft_fast",
        "parent": parent,
    }


def model_list(adapters: Adapters) -> dict:
    return {"object": "list", "data": [model_object(adapter, adapters.base) for adapter in adapters.all()]}
