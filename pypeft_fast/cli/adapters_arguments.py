"""The options of `pypeft-fast adapters`."""

from pathlib import Path

from .common import add_model

SUMMARY = "list adapters, compare two of them, or export one for llama.cpp"
EXAMPLE = "pypeft-fast adapters list out"
ADVICE = """\
list DIR...   a table of the adapters in these folders and below: method, base, rank, targets, parameters, bytes, time
diff A B      the fields in which two configs differ; and, for each kind of layer, how far two LoRA updates are apart
export DIR    a GGUF file of a LoRA adapter, for llama.cpp's --lora"""


def add_arguments(parser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=type(parser))
    listing = actions.add_parser("list", help="a table of the adapters in these folders", allow_abbrev=False)
    listing.add_argument("folders", nargs="+", metavar="DIR", type=Path, help="a folder, searched with all below it")
    difference = actions.add_parser("diff", help="compare two adapters", allow_abbrev=False)
    difference.add_argument("first", metavar="A", type=Path, help="the folder of an adapter")
    difference.add_argument("second", metavar="B", type=Path, help="the folder of another adapter")
    for its in (listing, difference):
        its.add_argument("--json", action="store_true", help="print the result as JSON")
    export = actions.add_parser("export", help="write a GGUF file for llama.cpp", allow_abbrev=False)
    export.add_argument("adapter", metavar="DIR", type=Path, help="the folder of a LoRA adapter")
    add_model(export)
    export.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="the .gguf file to write, a new file"
    )
