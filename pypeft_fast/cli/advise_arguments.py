"""The options of `pypeft-fast advise`."""

from .common import (
    add_batch_size,
    add_data,
    add_dtype,
    add_held_out,
    add_max_length,
    add_model,
    add_quantize,
    add_seed,
    add_threads,
)
from .option_values import path, positive, positive_int
from .plan_arguments import GROUPS, add_room

SUMMARY = "recommend target_modules for a model and your data: costs, gradients, and what publications found"
EXAMPLE = "pypeft-fast advise --model smollm2 --data examples/faq.jsonl --try 40 --html advice.html"
TRIED = 40  # steps
ADVICE = """\
The candidates are LoRA on q,v, on attention, on the MLP layers and on all linear layers, at one rank. The command
predicts what each costs, as plan does. Then it attaches adapters that do not change the model to all linear layers and
measures, on a few batches of your data, how large the gradients are in each kind of layer and in each block. With --try
it also trains two candidates for some steps and compares their losses on held-out examples. The recommendation follows
rules that the report states, together with what is not known."""


def add_arguments(parser) -> None:
    add = parser.add_argument
    add_model(parser)
    add_data(parser, "as finetune's --data")
    add_held_out(parser, several=False)
    add("--targets", action="append", choices=GROUPS, help="only this candidate; may be repeated (default: all four)")
    add("--rank", type=positive_int, metavar="N", default=16, help="the rank of the adapters (default: %(default)s)")
    add("--batches", type=positive_int, metavar="N", default=8, help="batches for the gradients (default: %(default)s)")
    add_batch_size(parser)
    add(
        "--try",
        type=positive_int,
        nargs="?",
        const=TRIED,
        metavar="STEPS",
        help=f"train two candidates for this many steps and compare their held-out loss (STEPS: {TRIED} if left out)",
    )
    add(
        "--learning-rate",
        type=positive,
        metavar="X",
        default=5e-4,
        help="of --try; at most 1 (default: %(default)s)",
    )
    add_max_length(parser)
    add_dtype(parser)
    add_quantize(parser)
    add_room(parser)
    add_seed(parser, "the seed of the split, the batches, the initial values and the dropout")
    add_threads(parser)
    add("--no-timing", action="store_true", help="do not time a block: no seconds in the table")
    add("--html", type=path, metavar="FILE", help="write the report, with pictures and sources, as one HTML file")
    add("--json", type=path, metavar="FILE", help="write all numbers as JSON")
