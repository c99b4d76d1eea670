"""Times every tuning candidate for the shapes of the layer table, then each op with each of its kernels.

The package's own tuning times the candidates and writes the cache that the later steps read.
"""

import json

import torch

from pypeft_fast import _own, _tuning  # noqa: F401 - registers all ops
from pypeft_fast.testing import available

from ...harness.cases import Operands, ours
from .. import device, found
from ..calls import layer_cases, ops_of
from ..device import BF16


def decisions():
    """The decisions in the tuning cache: the key, the fastest candidate, and the milliseconds of each candidate."""
    files = sorted(_tuning.folder().glob("*.json")) if _tuning.folder().is_dir() else []
    return [json.loads(file.read_text()) for file in files]


def by_kernel(case, seconds):
    """{op: {kernel: seconds}}"""
    steps = {}
    for op, args in ops_of(case):
        for kernel in available(op):
            if kernel != "reference" and op.takes_arguments(kernel, *args):
                steps[op.name, kernel] = lambda op=op, kernel=kernel, args=args: op.function(kernel)(*args)
    times, found = device.interleaved(steps, seconds), {}
    for (op, kernel), took in times.items():
        found.setdefault(op, {})[kernel] = took
    return found


def main():
    device.prepare()
    ops, cases = {}, layer_cases()
    for case in cases:
        for op, args in ops_of(case):
            chosen = op.choose(*args)
            chosen.function(*args)
            print(case, op.name, chosen.name, flush=True)
        ours(case, Operands(case), None)()  # the same ops as a layer calls them
        torch.cuda.empty_cache()
        line = f"{len(decisions())} decisions"
        found.keep(decisions=decisions(), line=line)
    for case in cases:
        if case.adapter == BF16 or device.REHEARSED:
            ops[str(case)] = {"case": [case.M, case.K, case.N, case.r, case.p], "seconds": by_kernel(case, 0.5)}
            print(case, ops[str(case)]["seconds"], flush=True)
            found.keep(decisions=decisions(), ops=ops, line=f"{line}, ops of {len(ops)} cases by each kernel")


if __name__ == "__main__":
    main()
