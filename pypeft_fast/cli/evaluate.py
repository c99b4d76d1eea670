"""`pypeft-fast evaluate`: the loss of a model on data, with and without adapters."""

import json
import math

from ..finetune.data.load import load_data
from ..finetune.report.advice import shortened
from .adapter_option import check_arguments, import_libraries
from .common import add_adapters, add_data, add_json, add_loading, add_max_length, add_model
from .option_names import as_options
from .option_values import positive_int
from .terminal import say

SUMMARY = "the loss of a model on data, with and without adapters"
EXAMPLE = "pypeft-fast evaluate --model smollm2 --adapter my-adapter --data questions.jsonl"
ADVICE = """\
The loss is the mean over the tokens of the answers, in nats; the perplexity is the exponential of the loss. Use data
that no adapter was trained on: the loss on training data does not show how well an adapter answers new questions."""


def add_arguments(parser) -> None:
    add = parser.add_argument
    add_model(parser)
    add_adapters(parser)
    add_data(parser, "as finetune's --data")
    add_max_length(parser)
    add("--batch-size", type=positive_int, metavar="N", default=8, help="examples at a time (default: 8)")
    add_json(parser)
    add_loading(parser)


def run(arguments) -> None:
    adapters = check_arguments(arguments)
    examples = load_data(arguments.data)
    import_libraries(arguments, adapters)
    from ..finetune.evaluate import evaluate
    from ..finetune.memory import peak_memory_bytes

    names = ("dtype", "quantize", "max_length", "batch_size")
    options = {name: getattr(arguments, name) for name in names}
    result = evaluate(arguments.model, adapters, examples, **options)
    data, losses = result.data, result.losses
    if arguments.json:
        facts = {"data": arguments.data, "examples": len(data.held_out), "tokens": result.tokens}
        facts |= {"dropped_examples": data.dropped, "cut_examples": data.cut}
        facts |= {"quantize": arguments.quantize, "peak_memory_bytes": peak_memory_bytes(), "losses": losses}
        say(json.dumps(facts, indent=2), keep="\n")
        return
    for line in shortened(data, arguments.max_length):
        say(as_options(line, arguments))
    say(f"{len(data.held_out)} examples, {result.tokens} tokens of answers")
    wide = max(map(len, losses))
    for name, loss in losses.items():
        perplexity = math.exp(loss) if loss < 700 else math.inf
        say(f"{name:<{wide}}  loss {loss:.3f}  perplexity {perplexity:.4g}")
    say(f"peak memory: {peak_memory_bytes() / 1e9:.2f} GB (resident set of this process)")
