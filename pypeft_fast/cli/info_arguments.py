"""What `pypeft-fast info` is told."""

SUMMARY = "what this machine and this installation can run, and why not the rest"
EXAMPLE = "pypeft-fast info"
ADVICE = ""


def add_arguments(parser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")
