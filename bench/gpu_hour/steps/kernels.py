"""Compares every kernel of every op with float64 in every case of pypeft_fast.testing, on NaN-poisoned memory.

Each kernel runs in its own process, so a kernel that destroys the CUDA context does not affect the other kernels.
"""

import itertools
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import replace

import torch

from pypeft_fast import _own  # noqa: F401 - registers all ops
from pypeft_fast._op import KERNELS, OPS
from pypeft_fast.testing import CASES, TYPICAL, VARIANTS, assert_agrees, available

from .. import device, found
from ..calls import SEGMENTS
from ..device import BF16, F16, F32

DTYPES = ((F32, None), (BF16, None), (BF16, F32), (F16, None), (F16, F32))
SLOWEST_FIRST = ("triton", "triton+blas", "cuda", "blas", "reference", "cpu")


def cases(op):
    """The op's variants in every pair of dtypes first, then the sizes, layouts and probabilities of CASES.

    Of an op over rows of several adapters a part: ranks and alignments are constants, so Triton compiles most cases.
    """
    options = [options for name, options in VARIANTS.values() if name == op]
    pairs = device.sized(DTYPES, DTYPES[2:3])
    if op in SEGMENTS:
        options = device.sized(options, options[:1])
        first = [replace(TYPICAL, dtype=BF16, adapter=F32, options=o) for o in options]
        return [*first, *device.sized([*(replace(TYPICAL, dtype=d, adapter=a) for d, a in pairs), *CASES[::8]], [])]
    first = [replace(TYPICAL, dtype=d, adapter=a, options=o) for o, (d, a) in itertools.product(options, pairs)]
    return [*first, *device.sized(CASES, [])]


def prepare():
    os.environ["PYPEFT_FAST_TUNE"] = "0"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)  # also fills torch.empty with NaN
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    device.prepare()


def checked(op, kernel):
    """(number of cases, [faults]) of one kernel; any exception but an AssertionError ends the checks."""
    prepare()
    wrong, those = [], cases(op)
    for case in those:
        try:
            assert_agrees(op, kernel, case)
        except AssertionError as fault:
            wrong.append(f"{kernel}: {fault}")
    return len(those), wrong


def in_new_process(*unit):
    """Runs `checked` in a new process. If that process dies, the future raises the exception."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(checked, *unit).result()


def main():
    device.prepare()
    units = [(op, kernel) for kernel in SLOWEST_FIRST for op in OPS if kernel in available(OPS[op])]
    if device.REHEARSED:
        units = [unit for unit in units if unit[1] == "triton"]
    kernels, agreed, wrong = {}, 0, []
    with ThreadPoolExecutor(device.workers(12)) as pool:
        pending = {pool.submit(device.sized(in_new_process, checked), *unit): unit for unit in units}
        for future in as_completed(pending):
            op, kernel = pending[future]
            error = future.exception()
            count, faults = (0, [f"{op}: {kernel}: {error!r}"]) if error is not None else future.result()
            print(op, kernel, f"{count} cases", *faults, sep="\n  ", flush=True)
            agreed, wrong = agreed + count - len(faults) * (error is None), wrong + faults
            kernels.setdefault(op, {})[kernel] = {"cases": count, "wrong": faults}
            left = len(units) - sum(map(len, kernels.values()))
            line = f"{agreed} cases agree, {len(wrong)} do not, {left} kernels are not checked"
            found.keep(kernels=kernels, wrong=wrong, line=line)
    if wrong:
        sys.exit(f"{len(wrong)} faults, the first: {wrong[0].splitlines()[0][:300]}")


assert set(SLOWEST_FIRST) == set(KERNELS)

if __name__ == "__main__":
    main()
