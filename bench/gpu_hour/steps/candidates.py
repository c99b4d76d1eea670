"""Compiles every tiling that tuning may choose for the shapes of the layer table, in several processes.

Each process makes, for its share of the candidates, the same launches that the next step times, so that Triton's cache
on disk then has all compiled kernels.
"""

import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from unittest import mock

import torch

import pypeft_fast as pf
from pypeft_fast import _own  # noqa: F401 - registers all ops
from pypeft_fast.ops import _triton

from .. import device, found
from ..calls import layer_cases, ops_of


def share(at, of):
    """{launch: {candidate: seconds of the first run, or why it cannot run}} for candidates at, at + of, ..."""
    from triton.runtime.errors import OutOfResources

    from pypeft_fast.kernels import _tiles

    device.prepare()
    seen = {}

    def launch(op, run, operands, sizes, *options):
        arch = _tiles.architecture(operands[0].device)
        bits = _tiles.bits_of(arch, tuple(t.dtype for t in operands))
        key = f"{op} {' '.join(str(t.dtype).removeprefix('torch.') for t in operands)} {sizes} {options}"
        for name, config in list(_tiles.candidates(op, arch, bits).items())[at::of]:
            began = time.perf_counter()
            try:
                run(config)
                device.synchronize()
                seen.setdefault(key, {})[name] = round(time.perf_counter() - began, 3)
            except OutOfResources as error:
                seen.setdefault(key, {})[name] = str(error)

    with mock.patch.object(_tiles, "launch", launch), pf.using("triton"):
        for case in layer_cases():
            for op, args in ops_of(case):
                op.function("triton")(*args)
            torch.cuda.empty_cache()
    return seen


def main():
    device.prepare()
    if (reason := _triton.why_no_triton()) is not None:
        found.skip(reason)
    count = device.workers(12)
    if device.REHEARSED:
        pool = ThreadPoolExecutor(1)
    else:
        pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
    ran, wrong = {}, []
    with pool:
        for future in as_completed([pool.submit(share, at, count) for at in range(count)]):
            if (error := future.exception()) is not None:
                wrong.append(repr(error))
            else:
                for key, times in future.result().items():
                    ran.setdefault(key, {}).update(times)
            large = sum(isinstance(t, str) for times in ran.values() for t in times.values())
            line = f"{sum(map(len, ran.values()))} candidates of {len(ran)} launches, {large} too large for this GPU"
            found.keep(candidates=ran, wrong=wrong, line=line)
            print(line, *wrong, sep="\n", flush=True)
    if wrong:
        sys.exit(f"{len(wrong)} of {count} processes ended early: {wrong[0][:300]}")


if __name__ == "__main__":
    main()
