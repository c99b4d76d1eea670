"""The options of `pypeft-fast info`."""

SUMMARY = "the kernels that can run on this machine, and why the others cannot"
EXAMPLE = "pypeft-fast info"
ADVICE = ""


def add_arguments(parser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
