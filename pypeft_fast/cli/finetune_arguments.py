"""The options of `pypeft-fast finetune`."""

from argparse import BooleanOptionalAction

from ..finetune.adapters.methods import BY_ROWS, DEFAULTS, METHODS
from ..finetune.training.reporters import REPORTERS
from .common import add_dtype, add_held_out, add_max_length, add_model, add_quantize, add_seed, add_threads
from .finetune_optimization import add_optimization
from .option_values import count, epochs, folder, positive, positive_int, probability, text

SUMMARY = "train an adapter for a language model on your data"
EXAMPLE = "pypeft-fast finetune --model smollm2 --data examples/faq.jsonl --output my-adapter"
REPORT = True  # the default of --report
ADVICE = """\
--data: a file of JSON lines, or a .json, .csv or .parquet file with the same keys or columns. The formats of a record:
  {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
  {"prompt": "Hi", "completion": "Hello!"}        also "response", or "question" and "answer"
  {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}
  {"instruction": "Greet", "input": "", "output": "Hello!"}
The loss counts only the assistant's tokens. A part of the data, or --eval-data, is held out and never trained on. The
held-out loss is evaluated before training, at each checkpoint and at the end; the adapter with the lowest held-out loss
is kept.

After the run the output folder has the adapter (adapter_config.json, adapter_model.safetensors, in Hugging Face PEFT's
format), README.md, finetune.json, metrics.json, loss.png and report.html. During the run it also has checkpoints, from
which --resume continues.

Several adapters over one base model: --data desk=FILE --data billing=FILE --output DIR trains both in one run and
writes DIR/desk, DIR/billing, DIR/loss.png and DIR/report.html. Each adapter has the steps, the evaluations and the
result of a run of its own (dropout draws other numbers). A step takes --batch-size examples of each adapter at once, so
memory grows with the number of adapters. With --by-product there is one --data, and the key "product" of each record
names its adapter. Checkpoints of all adapters are in DIR. Methods: """ + ", ".join(BY_ROWS)


def _methods_with(option: str) -> str:
    return ", ".join(name for name, its in METHODS.items() if option in its.options)


def _of(option: str, what: str) -> str:
    """The help text of an option that only some methods have: the methods, the meaning, and the default."""
    return f"{_methods_with(option)}: {what} (default: {DEFAULTS[option]:g})"


def add_arguments(parser) -> None:
    add = parser.add_argument
    add(
        "--config",
        metavar="FILE",
        help="read options from this .yaml, .toml or .json file, such as an earlier run's finetune.json; a key is the "
        "long name of an option; options on the command line override the file",
    )
    add("--print-config", action="store_true", help="print all options with their values as YAML, and end")
    add_model(parser)
    add(
        "--data",
        required=True,
        action="append",
        type=text,
        metavar="[NAME=]FILE|OWNER/NAME[:FILE]|chatterbot:TOPIC",
        help="the training data, see below; give the option several times with NAME= to train an adapter from each",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--by-product",
        action=BooleanOptionalAction,
        default=False,
        help='train an adapter for each product that occurs as "product" in the records of --data',
    )
    which.add_argument("--product", type=text, metavar="NAME", help="train on the records of this product only")
    add("--output", required=True, type=folder, metavar="DIR", help="the folder to write")
    add("--method", choices=list(METHODS), help="the kind of adapter (default: lora)")
    add(
        "--adapter",
        type=text,
        metavar="DIR",
        help="train this adapter further instead of a new one; its files do not change",
    )
    add("--rank", type=positive_int, metavar="N", help=_of("rank", "size of the adapter"))
    add("--alpha", type=positive, metavar="X", help=_of("alpha", "the update is scaled by alpha/rank"))
    add("--dropout", type=probability, metavar="X", help=_of("dropout", "the dropout rate of the adapter"))
    add(
        "--reduction-factor",
        type=positive,
        metavar="X",
        help=_of("reduction_factor", "the model's width divided by the adapter's"),
    )
    add("--virtual-tokens", type=positive_int, metavar="N", help=_of("virtual_tokens", "number of virtual tokens"))
    add(
        "--target-modules",
        metavar="NAMES",
        help=f"{_methods_with('target_modules')}: layers to adapt: names separated by commas, one regular expression, "
        "or all-linear (default: all-linear; ia3: PEFT's choice for the architecture; bitfit: all layers that can have "
        "a bias)",
    )
    add("--epochs", type=epochs, metavar="X", help="passes over the data (default: 3, more for few examples)")
    add("--max-steps", type=positive_int, metavar="N", help="stop after N steps, instead of --epochs")
    add(
        "--batch-size",
        type=positive_int,
        metavar="N",
        help="examples per batch, of each adapter; a smaller batch takes less memory (default: 4)",
    )
    add("--gradient-accumulation", type=positive_int, metavar="N", help="batches per step (default: 1)")
    add(
        "--learning-rate",
        type=positive,
        metavar="X",
        help=f"at most 1 (default: depends on the method, for lora {METHODS['lora'].learning_rate:g})",
    )
    add_optimization(parser)
    add_max_length(parser)
    add(
        "--packing",
        action=BooleanOptionalAction,
        default=False,
        help="fill each row of a batch with examples, up to --max-length tokens; examples do not attend to each other, "
        "and --batch-size counts rows",
    )
    add_dtype(parser)
    add_quantize(parser)
    add_held_out(parser, several=True)
    add(
        "--patience",
        type=positive_int,
        metavar="N",
        help="stop after N evaluations without a lower held-out loss (default: never)",
    )
    add(
        "--chat-template",
        type=text,
        metavar="FILE",
        help="a Jinja template to use instead of the tokenizer's; it is stored with the adapter, and chat, evaluate, "
        "serve and merge use it",
    )
    add(
        "--report-to",
        nargs="+",
        choices=list(REPORTERS),
        metavar="NAME",
        help=f"report the losses to these programs: {', '.join(REPORTERS)}; TensorBoard's files are in --output "
        "(default: none)",
    )
    add(
        "--report",
        action=BooleanOptionalAction,
        default=REPORT,
        help="write report.html at the end: losses, answers before and after, options, how to use the adapter",
    )
    add(
        "--report-examples",
        type=count,
        metavar="N",
        default=3,
        help="questions of report.html, answered by the base model and by each adapter (default: %(default)s)",
    )
    add_seed(parser, "the seed of the split, the data order, the initial values and the dropout")
    add(
        "--eval-every",
        "--save-every",
        dest="save_every",
        type=count,
        metavar="STEPS",
        help="steps between evaluations, each with a checkpoint; 0: none (default: one epoch, but 10 to 200 steps)",
    )
    add(
        "--keep-checkpoints",
        action=BooleanOptionalAction,
        default=False,
        help="do not delete the checkpoints after the run",
    )
    add(
        "--gradient-checkpointing",
        action=BooleanOptionalAction,
        default=False,
        help="use less memory and more time",
    )
    add_threads(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output")
    how.add_argument("--overwrite", action="store_true", help="replace the files of an earlier run in --output")
