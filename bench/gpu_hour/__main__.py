"""python -m bench.gpu_hour: with any python3 that has PyTorch >= 2.10 and Triton >= 3.6; no network, no installation.

The most valuable step runs first. Each step has a process and a time limit of its own. The result of a step is written
when the step ends, or is stopped: OUTPUT/steps/NAME.json, and in OUTPUT/logs/NAME.log what it printed.
OUTPUT/gpu-hour.json holds all results, OUTPUT/gpu-hour.md the measured times next to the predictions of
docs/performance-model.md. Another run continues where the last one ended and repeats no completed step.
"""

import argparse
import functools
import gc
import importlib
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from . import summary
from .plan import STEPS
from .process import ROOT, Process, environment
from .running import DONE, SKIP, Hour, read

NAMES = [step.name for step in STEPS]
RESERVED = 5.0  # seconds reserved at the end, for writing the table and stopping the last step


def parsed(arguments):
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_hour", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together (default: %(default)s)")
    parser.add_argument("--from", dest="first", choices=NAMES, metavar="STEP", help="begin with this step")
    parser.add_argument("--again", action="store_true", help="run completed steps again")
    parser.add_argument("--list", action="store_true", help="print the steps, their limits and how they ended")
    parser.add_argument("--rehearse", action="store_true", help="every step on the CPU, with tiny sizes; no GPU needed")
    parser.add_argument("--output", type=Path, help="folder (default: out/gpu-hour, or out/gpu-hour-rehearsed)")
    options = parser.parse_args(arguments)
    if options.output is None:
        options.output = Path("out/gpu-hour-rehearsed" if options.rehearse else "out/gpu-hour")
    if options.minutes <= 0:
        parser.error(f"--minutes {options.minutes:g}: a time must be left for the steps; 9 is the default")
    return options


def listed(output):
    for step in STEPS:
        result = read(output, step.name)
        how = "" if result is None else f"{result['status']} {result['why']}"
        print(f"{step.name:<14}{step.seconds:>4.0f} s  {step.about}{': ' if how else ''}{how}")


@functools.cache
def warm():
    """Imports the largest packages on the CPU, before the rehearsal forks its steps from this process."""
    os.environ.update(environment(Path(), rehearsed=True))
    sys.path.insert(0, str(ROOT))
    for name in ("pypeft_fast._own", "peft", "transformers.models.llama.modeling_llama", "pytest"):
        if find_spec(name.partition(".")[0]) is not None:
            importlib.import_module(name)
    gc.freeze()  # otherwise the first garbage collection in each fork would copy the memory pages


def main(arguments=None):
    options = parsed(arguments)
    output = options.output.resolve()
    if options.list:
        try:
            listed(output)
            sys.stdout.flush()
        except BrokenPipeError:  # of `--list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush at exit
            return 141
        return 0
    if find_spec("torch") is None:
        sys.exit(
            f"bench.gpu_hour: {sys.executable} has no PyTorch; name a Python that has PyTorch and Triton, as in "
            "`make gpu-hour PYTHON=.venv/bin/python`"
        )
    given = environment(output, options.rehearse)
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts its background processes with SIGINT ignored
        signal.signal(number, signal.default_int_handler)

    def start(step):
        if options.rehearse:
            warm()
        return Process(step, output, given, forked=options.rehearse)

    def tell(line):
        print(line, flush=True)
        summary.write(output, NAMES)  # written after each step, so that the results survive if this process is killed

    hour = Hour(output, max(60 * options.minutes - RESERVED, 1), start, tell)
    try:
        statuses = hour.run(STEPS[NAMES.index(options.first) if options.first else 0 :], options.again)
    except KeyboardInterrupt:
        print(f"stopped; what was found is in {output}", file=sys.stderr)
        sys.exit(130)
    summary.write(output, NAMES)
    print((output / "gpu-hour.md").read_text())
    return 0 if all(status in (DONE, SKIP) for status in statuses.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
