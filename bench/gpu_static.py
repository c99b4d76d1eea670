"""python -m bench.gpu_static: the static report: compiles every GPU kernel for several GPUs; no GPU is needed.

The kernels are compiled and checked, not measured. Writes bench/results/gpu_static.md and .json. Fails for a spill, for
local memory, for a missing tensor-core instruction, for loads narrower than 16 bytes of aligned tensors, and for a main
loop with more instructions than its budget in bench/static/budget.py.

A provider is a function (targets) -> rows; add a function to PROVIDERS for a new kind of kernel.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from .harness.report import RESULTS
from .static.budget import unmatched
from .static.row import Row, table

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def triton_rows(targets) -> Iterable[Row]:
    from .static.triton_rows import rows

    return rows(targets)


def cuda_rows(targets) -> Iterable[Row]:
    from .static.cuda_rows import rows

    return rows(targets)


PROVIDERS: dict[str, Callable[[tuple[str, ...]], Iterable[Row]]] = {"triton": triton_rows, "cuda": cuda_rows}


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_static", description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=TARGETS, choices=TARGETS)
    parser.add_argument("--providers", nargs="+", default=list(PROVIDERS), choices=list(PROVIDERS))
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the report (default bench/results)")
    parser.add_argument("--keep", action="store_true", help="keep the report's rows of other providers and targets")
    options = parser.parse_args(arguments)
    derived, kept, report = ("occupancy", "an_element", "budget"), [], options.output / "gpu_static.json"
    if options.keep and report.exists():
        before = (Row(**{k: v for k, v in row.items() if k not in derived}) for row in json.loads(report.read_text()))
        kept = [r for r in before if r.made_by not in options.providers or r.target not in options.targets]
    compiled = [row for name in options.providers for row in PROVIDERS[name](tuple(options.targets))]
    rows = sorted([*compiled, *kept], key=lambda r: (list(PROVIDERS).index(r.made_by), TARGETS.index(r.target)))
    faults = [fault for row in rows for fault in row.faults()] + unmatched(compiled, options.targets)
    options.output.mkdir(parents=True, exist_ok=True)
    written = [json.dumps(dataclasses.asdict(r) | {name: getattr(r, name) for name in derived}) for r in rows]
    report.write_text("[\n" + ",\n".join(written) + "\n]\n")
    title = "# GPU kernels as compiled\n\nPrinted by `make gpu-static`. Compiled and checked, not measured.\n\n"
    (options.output / "gpu_static.md").write_text(title + table(rows))
    print(table(rows) + "\n".join(faults))
    print(f"{len(compiled)} kernels compiled, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
