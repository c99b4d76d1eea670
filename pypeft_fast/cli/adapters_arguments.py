"""The options of `pypeft-fast adapters`."""

from ..finetune.adapters.combinations import COMBINATIONS
from .common import add_json, add_model, add_new_folder, add_seed
from .option_values import density, finite, path, positive_int

SUMMARY = "list adapters, compare two of them, merge several into one, or export one for llama.cpp"
EXAMPLE = "pypeft-fast adapters list out"
ADVICE = """\
list DIR...   a table of the adapters in these folders and below: method, base, rank, targets, parameters, bytes, time
diff A B      the fields in which two configs differ; and, for each kind of layer, how far two LoRA updates are apart
merge DIR...  one adapter, the weighted sum of several, by PEFT's add_weighted_adapter; needs no base model
export DIR    a GGUF file of a LoRA adapter, for llama.cpp's --lora"""


def add_arguments(parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    listing = actions.add_parser("list", help="a table of the adapters in these folders", allow_abbrev=False)
    listing.add_argument("folders", nargs="+", metavar="DIR", type=path, help="a folder, searched with all below it")
    difference = actions.add_parser("diff", help="compare two adapters", allow_abbrev=False)
    difference.add_argument("first", metavar="A", type=path, help="the folder of an adapter")
    difference.add_argument("second", metavar="B", type=path, help="the folder of another adapter")
    for its in (listing, difference):
        add_json(its)
    add_merge(actions.add_parser("merge", help="one adapter, the weighted sum of several", allow_abbrev=False))
    export = actions.add_parser("export", help="write a GGUF file for llama.cpp", allow_abbrev=False)
    export.add_argument("adapter", metavar="DIR", type=path, help="the folder of a LoRA adapter")
    add_model(export)
    export.add_argument(
        "--output", required=True, type=path, metavar="FILE", help="the .gguf file to write, a new file"
    )


def add_merge(parser) -> None:
    parser.add_argument("folders", nargs="+", metavar="DIR", type=path, help="the folders of two or more adapters")
    parser.add_argument(
        "--weights",
        nargs="+",
        required=True,
        metavar="W",
        type=finite,
        help="a number for each adapter, in the order of the folders; a negative one subtracts the adapter",
    )
    parser.add_argument(
        "--method",
        choices=COMBINATIONS,
        default=COMBINATIONS[0],
        help="how: cat is exact, and its rank is the sum of the ranks (default: %(default)s)",
    )
    parser.add_argument(
        "--rank", type=positive_int, metavar="R", help="the rank, with a method of svd (default: the largest rank)"
    )
    parser.add_argument(
        "--density", type=density, metavar="D", help="the share of values that ties, dare and magnitude_prune keep"
    )
    add_seed(parser, "the seed of the values that dare drops")
    add_new_folder(parser)
