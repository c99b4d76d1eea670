"""python -m bench.publish: copies the results of `make bench`, bench-model, bench-fuse, bench-ranks, bench-quantized,
bench-adapters, bench-files, bench-serve and bench-gpu from out/bench into bench/results and the documents.

Check the results first: other processes on the machine distort the times. A result replaces all tables of its
benchmark, so a run of a part of the cases is refused unless --drop-rows is given."""

import argparse
import shutil
import sys
from collections import Counter
from pathlib import Path

from . import readme
from .harness import report

NAMES = (
    "layer", "model", "fuse", "ranks", "gpu",
    "quantized", "quantized_model", "multi_adapters", "adapter_files", "serve",
)  # fmt: skip
PICTURED = {"layer", "model", "fuse", "ranks", "gpu", "quantized"}


def rows(text):
    """Counts the rows of the tables in the text of a NAME.md by their first cells, and the settings in its first line.

    The tables of targets do not count: the name of a target may contain the worst case of a run.
    """
    headline, *parts = text.split("\n\n")
    found = Counter(part for part in headline.strip().split(", ") if part.startswith(("threads ", "batch ")))
    for part in parts:
        header, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.strip().splitlines()]
        if header and header[-1] != "verdict":
            found.update(f"{header[0]} {line[0]}" for line in lines[1:])
    return found


def refuse_lost_rows(names, source, results):
    """SystemExit if a published table has rows that the new result lacks."""
    for name in names:
        new, old = source / f"{name}.md", results / f"{name}.md"
        lost = list((rows(old.read_text()) - rows(new.read_text())).elements()) if old.is_file() else []
        if lost:
            shown = "; ".join(lost[:5]) + (f"; and {len(lost) - 5} more" if len(lost) > 5 else "")
            sys.exit(
                f"{new} lacks {len(lost)} rows of {old}, and publishing would delete these: {shown}. Run the benchmark "
                f"with all its cases, remove {source / name}.json to publish the others alone, or give --drop-rows "
                "(make bench-publish DROP_ROWS=1)"
            )


def publish(source, results, drop_rows=False):
    """The names that were copied.

    SystemExit, before any copy, if there are none, if a benchmark lacks one of its files, or if published rows would be
    lost, unless `drop_rows`.
    """
    found = [name for name in NAMES if (source / f"{name}.json").is_file()]
    if not found:
        sys.exit(f"{source} holds no benchmark: run `make bench`, bench-model, bench-fuse or bench-gpu first")
    files = [source / f"{name}.{kind}" for name in found for kind in ("json", "md") + ("png",) * (name in PICTURED)]
    if lacking := [str(file) for file in files if not file.is_file()]:
        sys.exit(f"{', '.join(lacking)}: not written; let the benchmark run to its end")
    if not drop_rows:
        refuse_lost_rows(found, source, results)
    for file in files:
        shutil.copy(file, results / file.name)
    return found


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.publish", description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    parser.add_argument("--drop-rows", action="store_true", help="publish also a result that lacks published rows")
    options = parser.parse_args(arguments)
    print("published:", ", ".join(publish(options.source, report.RESULTS, options.drop_rows)))
    readme.main()


if __name__ == "__main__":
    main()
