"""python -m bench.publish: copies the results of `make bench`, bench-model, bench-fuse, bench-ranks, bench-quantized,
bench-adapters, bench-files and bench-gpu from out/bench into bench/results and the documents.

Check the results first: other processes on the machine distort the times."""

import argparse
import shutil
import sys
from pathlib import Path

from . import readme
from .harness import report

NAMES = (
    "layer", "model", "fuse", "ranks", "gpu", "quantized", "quantized_model", "multi_adapters", "adapter_files",
)  # fmt: skip
PICTURED = {"layer", "model", "fuse", "ranks", "gpu", "quantized"}


def publish(source, results):
    """The names that were copied; SystemExit if there are none, or if a benchmark lacks one of its files."""
    found = [name for name in NAMES if (source / f"{name}.json").is_file()]
    if not found:
        sys.exit(f"{source} holds no benchmark: run `make bench`, bench-model, bench-fuse or bench-gpu first")
    files = [source / f"{name}.{kind}" for name in found for kind in ("json", "md") + ("png",) * (name in PICTURED)]
    if lacking := [str(file) for file in files if not file.is_file()]:
        sys.exit(f"{', '.join(lacking)}: not written; let the benchmark run to its end")
    for file in files:
        shutil.copy(file, results / file.name)
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    print("published:", ", ".join(publish(options.source, report.RESULTS)))
    readme.main()


if __name__ == "__main__":
    main()
