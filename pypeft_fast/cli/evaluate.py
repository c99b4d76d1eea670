"""`pypeft-fast evaluate`: the loss of a model on data, with adapters and without."""

import json
import math

from . import threads
from .adapter_files import check_files
from .adapters import check_names, parse_adapters
from .common import add_dtype, add_model, add_threads
from .data import load_data
from .errors import need
from .models import check_base, load_base
from .option_values import positive_int
from .terminal import calm_libraries, say

SUMMARY = "the loss of a model on data, with adapters and without"
EXAMPLE = "pypeft-fast evaluate --model smollm2 --adapter my-adapter --data questions.jsonl"
ADVICE = """\
The loss is the mean over the answers' tokens, in nats; the perplexity is its exponential. Data that an adapter was
trained on says nothing about new questions."""


def add_arguments(parser) -> None:
    add = parser.add_argument
    add_model(parser)
    add("--adapter", action="append", default=[], metavar="[NAME=]DIR", help="an adapter's folder; may be repeated")
    add("--data", required=True, metavar="FILE|OWNER/NAME[:FILE]|chatterbot:TOPIC", help="as finetune's --data")
    add(
        "--max-length", type=positive_int, metavar="N", default=512, help="tokens; what is longer is cut (default: 512)"
    )
    add("--batch-size", type=positive_int, metavar="N", default=8, help="examples at a time (default: 8)")
    add("--json", action="store_true", help="print it as JSON")
    add_dtype(parser)
    add_threads(parser)


def run(arguments) -> None:
    need("transformers", "jinja2")
    check_base(arguments.model)
    adapters = parse_adapters(arguments.adapter)
    for path in adapters.values():
        check_files(path)
    examples = load_data(arguments.data)
    threads.use(arguments.threads)
    from .advice import shortened
    from .chat import Chat
    from .evaluation import held_out_loss, target_tokens
    from .tokens import Collator, check_ids, check_length
    from .train import held_out_data

    calm_libraries()
    check_names(adapters)
    model, tokenizer = load_base(arguments.model, arguments.dtype)
    data = held_out_data(tokenizer, examples, arguments.max_length)
    check_ids(model, [token for encoded in data.held_out for token in encoded.input_ids])
    check_length(model, max(len(e.input_ids) for e in data.held_out), None, arguments.max_length)
    chat = Chat(model, tokenizer, adapters)
    losses = {}
    for name in (None, *chat.adapters):
        with chat.using(name):
            losses[name or "base"] = held_out_loss(
                chat.model, data.held_out, Collator.of(tokenizer), arguments.batch_size
            )
    if arguments.json:
        facts = {"data": arguments.data, "examples": len(data.held_out), "tokens": target_tokens(data.held_out)}
        facts |= {"dropped_examples": data.dropped, "cut_examples": data.cut, "losses": losses}
        say(json.dumps(facts, indent=2), keep="\n")
        return
    for line in shortened(data, arguments.max_length):
        say(line)
    say(f"{len(data.held_out)} examples, {target_tokens(data.held_out)} tokens of answers")
    wide = max(map(len, losses))
    for name, loss in losses.items():
        perplexity = math.exp(loss) if loss < 700 else math.inf
        say(f"{name:<{wide}}  loss {loss:.3f}  perplexity {perplexity:.4g}")
