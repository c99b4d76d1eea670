"""The command lines of benchmarks of one layer (bench.run, bench.gpu) and of a model (bench.model, bench.fuse)."""

import argparse
from pathlib import Path

from . import report


def of_layer(name, about, seconds, example):
    """A parser with --seconds, --only and --output; `chosen` applies --only."""
    parser = _parser(name, about, seconds, "seconds of timing for each case")
    add_only(parser, example)
    return parser


def add_only(parser, example):
    parser.add_argument(
        "--only", default="", help=f"cases whose name contains this text, such as {example} or bfloat16"
    )


def chosen(parser, cases, only):
    """The cases whose name contains `only`; SystemExit if there is none."""
    found = [case for case in cases if only in str(case)]
    if not found:
        parser.error(f"--only {only}: no case has this in its name; give a part of a name, such as {cases[0]}")
    return found


def of_model(name, about, seconds, each):
    """A parser with --seconds, --model, --threads, --shape and --output."""
    parser = _parser(name, about, seconds, f"seconds of timing for each {each}")
    parser.add_argument("--model", default="smollm2", help="smollm2 or a folder (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="the targets hold for two (default: %(default)s)")
    parser.add_argument("--shape", type=int, nargs=2, default=(4, 128), help="rows and tokens of a batch (4 128)")
    return parser


def _parser(name, about, seconds, meaning):
    parser = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=about.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=seconds, help=f"{meaning} (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    return parser
