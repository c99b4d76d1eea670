"""`pypeft-fast chat`: streams a model's answers, with one of the given adapters or without an adapter."""

from ..finetune.base_models import load_base
from ..finetune.errors import UserError, as_user_error
from .adapter_option import check_arguments, check_one_kind, import_libraries
from .common import add_adapters, add_loading, add_model, add_seed
from .option_values import not_negative, positive_int, top_p
from .terminal import say

SUMMARY = "talk to a model, with or without adapters"
EXAMPLE = "pypeft-fast chat --model smollm2 --adapter my-adapter"
ADVICE = """\
Commands in the conversation: /adapter NAME selects an adapter and /base the base model; both begin a new conversation.
/clear begins a new conversation, /help lists the commands, /quit ends the program."""
HELP = """\
/adapter NAME  selects this adapter and begins a new conversation
/base          selects the base model without an adapter and begins a new conversation
/clear         begins a new conversation
/help          prints this list
/quit          ends the program, as the end of the input does"""


def add_arguments(parser) -> None:
    add = parser.add_argument
    add_model(parser)
    add_adapters(parser)
    add("--prompt", metavar="TEXT", help="answer this prompt once, with every adapter, and end")
    add("--system", metavar="TEXT", help="the system message of the conversation")
    add(
        "--max-new-tokens",
        type=positive_int,
        metavar="N",
        default=256,
        help="the largest number of tokens of an answer (default: %(default)s)",
    )
    add(
        "--temperature",
        type=not_negative,
        metavar="X",
        default=0,
        help="0: always the most likely token; above 0: sample at this temperature (default: 0)",
    )
    add(
        "--top-p",
        type=top_p,
        metavar="X",
        default=1.0,
        help="sample from the most likely tokens with this total probability (default: 1)",
    )
    add("--top-k", type=positive_int, metavar="N", help="sample from the N most likely tokens (default: all)")
    add_seed(parser, "the seed of sampling")
    add_loading(parser)


def run(arguments) -> None:
    adapters = check_arguments(arguments)
    check_one_kind(adapters)
    import_libraries(arguments, adapters)
    import transformers

    from ..finetune.chat import Chat

    model, tokenizer = load_base(arguments.model, arguments.dtype, arguments.quantize)
    chat = Chat(model, tokenizer, adapters)
    if arguments.system and tokenizer.chat_template is None:
        raise UserError("--system: this tokenizer has no chat template for a system message; leave the option out")
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
    return options | {"temperature": None, "top_p": None, "top_k": None}  # overrides the model's generation_config


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
    if chat.tokenizer.chat_template is None:
        say("this tokenizer has no chat template: the model continues each line without the earlier lines")
    messages = list(start)
    while True:
        try:
            with as_user_error("the input is not valid text", (UnicodeDecodeError,)):
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
            say(f"{command} is not a command; /help lists the commands")
        elif text:
            messages.append({"role": "user", "content": text})
            answer = chat.answer(messages, _streamer(chat), **generation)
            remembers = chat.tokenizer.chat_template is not None
            messages = [*messages, {"role": "assistant", "content": answer}] if remembers else []


def _switched(chat, name: str | None) -> bool:
    """Selects another adapter and prints its name. Returns False, without a change, if the adapter is selected already
    or unknown."""
    try:
        before, _ = chat.current, chat.use(name)
    except UserError as error:
        say(str(error))
        return False
    if chat.current == before:
        return False
    say(f"{name or 'the base model'} answers now, and the conversation begins anew")
    return True
