"""The layer table of bench.gpu, the most valuable cases first; the results are written after each case."""

import sys
from importlib.util import find_spec

import torch

from ... import gpu
from .. import device, found
from ..calls import layer_cases

COMPILED = device.sized(2, 0)  # the number of cases with PEFT's layer under torch.compile, which takes seconds each
SECONDS = 0.6


def names_of(case, compiled):
    names = gpu.providers_of(case, compiled)
    return names if find_spec("peft") is not None else [name for name in names if not name.startswith("PEFT")]


def main():
    device.prepare()
    results, wrong, cases = [], [], layer_cases()
    # Cases with dropout come first, since the providers differ less without dropout.
    cases.sort(key=lambda case: case.p == 0)
    print(*gpu.HEADER, sep="  ")
    for at, case in enumerate(cases):
        result, faults = gpu.measure(case, names_of(case, at < COMPILED), SECONDS, device.interleaved)
        results.append(result)
        wrong += faults
        print(*gpu.row(result), *faults, sep="  ", flush=True)
        without = "" if find_spec("peft") is not None else ", without PEFT, which this Python lacks"
        line = f"{len(results)} of {len(cases)} cases{without}"
        found.keep(machine=device.machine(), results=results, wrong=wrong, line=line)
        if not device.REHEARSED:
            torch.cuda.empty_cache()
    if wrong:
        sys.exit(f"{len(wrong)} not timed, because wrong: {wrong[0]}")


if __name__ == "__main__":
    main()
