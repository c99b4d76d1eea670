"""`pypeft-fast chat`: streams a model's answers, with any of the adapters given, or none."""

import contextlib
from pathlib import Path

import torch

from .adapters import check_files, parse_adapters
from .errors import UserError, as_user_error, need
from .json_text import check_text
from .library_errors import LIBRARY_ERRORS
from .models import DTYPES, load_base
from .terminal import calm_libraries, say
from .tokens import check_ids, positions, render_prompt

HELP = """\
/adapter NAME  that adapter answers, and the conversation begins anew
/base          the base model answers without any, and the conversation begins anew
/clear         forgets what was said
/help          this list
/quit          ends, as the end of the input does"""


class Chat:
    """A base model, the adapters loaded on it, and which of them answers: `current`, None for the base model alone."""

    def __init__(self, model, tokenizer, adapters: dict[str, Path]):
        import pypeft_fast

        self.tokenizer = tokenizer
        self.adapters = list(adapters)
        self.current = self.adapters[0] if adapters else None
        self.model = model
        for number, (name, path) in enumerate(adapters.items()):
            check_files(path)
            with as_user_error(f"--adapter {path} cannot be loaded", LIBRARY_ERRORS):
                if number == 0:
                    self.model = pypeft_fast.PeftModel.from_pretrained(model, path, adapter_name=name)
                else:
                    self.model.load_adapter(path, name)
        self.model.eval()

    def use(self, name: str | None) -> None:
        """Lets this adapter answer; None: the base model. UserError if there is no such adapter."""
        if name is not None:
            if name not in self.adapters:
                raise UserError(f"no adapter {name!r}; there are: {', '.join(self.adapters) or 'none'}")
            self.model.set_adapter(name)
        self.current = name

    @torch.no_grad()
    def answer(self, messages, streamer=None, **generation) -> str:
        """The answer to the conversation so far; also written token by token to a streamer.

        Raises UserError if a message is no Unicode text, if the tokenizer's chat template refuses the conversation or
        leaves nothing to continue, and if the conversation is longer than the model reads.
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
        off = self.adapters and self.current is None
        kinds = (ValueError, TypeError, IndexError, OverflowError, RuntimeError)
        with as_user_error("the model cannot answer", kinds):
            with self.model.disable_adapter() if off else contextlib.nullcontext():
                tokens = self.model.generate(**inputs, streamer=streamer, **generation)
        return self.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    def _limit(self, length: int, wanted: int | None) -> dict[str, int]:
        """How many new tokens the model has positions for, if that limits it. UserError if it has none left."""
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


def run(arguments) -> None:
    need("transformers", "jinja2")
    import transformers

    calm_libraries()
    adapters = parse_adapters(arguments.adapter)
    model, tokenizer = load_base(arguments.model, DTYPES[arguments.dtype])
    if arguments.system and tokenizer.chat_template is None:
        raise UserError("--system: this tokenizer has no chat template to put a system message into; leave it out")
    chat = Chat(model, tokenizer, adapters)
    transformers.set_seed(arguments.seed)
    generation = _generation(arguments)
    start = [{"role": "system", "content": arguments.system}] if arguments.system else []
    if arguments.prompt is not None:
        _answer_once(chat, [*start, {"role": "user", "content": arguments.prompt}], generation)
    else:
        _converse(chat, start, generation)


def _generation(arguments) -> dict:
    options = {"max_new_tokens": arguments.max_new_tokens, "do_sample": arguments.temperature > 0}
    if options["do_sample"]:
        sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p, "top_k": arguments.top_k or 0}
        return options | sampling
    return options | {"temperature": None, "top_p": None, "top_k": None}  # silences what a model's own file may set


def _streamer(chat):
    from transformers import TextStreamer

    class SafeStreamer(TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            say(text, end="\n" if stream_end else "", keep="\n\t")

    return SafeStreamer(chat.tokenizer, skip_prompt=True, skip_special_tokens=True)


def _answer_once(chat, messages, generation) -> None:
    for name in chat.adapters or [None]:
        chat.use(name)
        if len(chat.adapters) > 1:
            say(f"[{name}]")
        chat.answer(messages, _streamer(chat), **generation)


def _converse(chat, start, generation) -> None:
    names = ", ".join(chat.adapters) or "none"
    say(f"adapters: {names}. /help lists the commands.")
    remembers = chat.tokenizer.chat_template is not None
    if not remembers:
        say("this tokenizer has no chat template: each line is continued for itself, none is remembered")
    messages = list(start)
    while True:
        try:
            with as_user_error("what was typed is no text", (UnicodeDecodeError,)):
                text = input(f"{chat.current or 'base'}> ").strip()
        except EOFError:
            say()
            return
        command, _, argument = text.partition(" ")
        if command == "/quit":
            return
        if command == "/help":
            say(HELP, keep="\n")
        elif command == "/clear":
            messages = list(start)
        elif command in ("/adapter", "/base"):
            if _switched(chat, argument.strip() if command == "/adapter" else None):
                messages = list(start)
        elif command.startswith("/"):
            say(f"{command} is not a command; /help lists those there are")
        elif text:
            messages.append({"role": "user", "content": text})
            answer = chat.answer(messages, _streamer(chat), **generation)
            messages = [*messages, {"role": "assistant", "content": answer}] if remembers else []


def _switched(chat, name: str | None) -> bool:
    """Lets another adapter answer, and says so. False, and nothing has changed, if it answered before or is unknown."""
    try:
        before, _ = chat.current, chat.use(name)
    except UserError as error:
        say(str(error))
        return False
    if chat.current == before:
        return False
    say(f"{name or 'the base model'} answers now, and the conversation begins anew")
    return True
