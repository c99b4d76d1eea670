"""The options of `pypeft-fast info`."""

from .common import add_json

SUMMARY = "the kernels that can run on this machine, and why the others cannot"
EXAMPLE = "pypeft-fast info"
ADVICE = ""


def add_arguments(parser) -> None:
    add_json(parser)
