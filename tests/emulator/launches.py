"""python -m tests.emulator.launches: runs every kernel of csrc/cuda and prints the shared memory of its launches.

The output is JSON: {mangled name: the most bytes of dynamic shared memory of a launch}. No binary holds these numbers.
"""

import ctypes
import dataclasses
import itertools
import json
import subprocess

import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import VARIANTS, Case, cut, sample
from tests import emulator

from .build import build

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [(F32, None), (BF16, None), (F16, None), (BF16, F32), (F16, F32)]
# [(op, options)]: every variant of every op that launches CUDA kernels of its own.
RUNS = [(op, o) for op, o in VARIANTS.values() if OPS[op].launches("cuda")]
# M, rank, multiprocessors: decoding with 8 and with 16 rows, then large and small tiles with small and large ranks.
SIZES = [(8, 5, 4), (16, 5, 4), (136, 5, 1), (72, 40, 132)]
DECODE = ("_linear", "multi_lora_forward")  # the ops that decode.cu computes for few rows
# (variant, format). With nf4 and few rows these ops read 4-bit codes.
STORED = [(run, "dense") for run in RUNS] + [(run, "nf4") for run in RUNS if run[0].endswith(DECODE)]
LAYOUTS = ("contiguous", "transposed", "strided")  # "transposed": the weight alone, read along its columns


def arguments(op, layout, case):
    if op == "dequantize":  # codes are always contiguous
        return sample(op, dataclasses.replace(case, layout="contiguous"))
    args = sample(op, cut(op, "cuda", case))
    if layout != "transposed":
        return args
    return tuple(
        a.t().contiguous().t() if isinstance(a, torch.Tensor) and a.shape == (case.N, case.K) else a for a in args
    )


def run_every_kernel():
    """Runs every op in every dtype, layout and size, and in float32 with and without tf32. No results are compared."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        every = itertools.product(STORED, LAYOUTS, SIZES, DTYPES)
        for ((op, options), format), layout, (M, r, multiprocessors), (dtype, adapter) in every:
            emulator.configure(multiprocessors=multiprocessors)
            for precision in ("ieee", "tf32"):
                if precision == "tf32" and F32 not in (dtype, adapter):
                    continue
                matmul.fp32_precision = precision
                strided = "strided" if layout == "strided" else "contiguous"
                for need in ((True, True), (False, True)) if op in ("lora_ds_db", "ia3_dx_dl") else (None,):
                    more = options if need is None else options | {"need": need}
                    K = 72 if format == "dense" else 96
                    case = Case(M, K, 136, r, 0.3, dtype, adapter, strided, format=format, options=more)
                    OPS[op](*arguments(op, layout, case))
    finally:
        matmul.fp32_precision = before


def shared_bytes() -> dict[str, int]:
    """{mangled name: bytes of shared memory} of the kernels that this process has launched."""
    listed = subprocess.run(["nm", build("kernels")], capture_output=True, text=True, check=True).stdout
    names = {int(line.split()[0], 16): line.split()[2] for line in listed.splitlines() if len(line.split()) == 3}
    found = {}

    def report(place, shared):
        found[names[place]] = shared

    emulator.library().emulator_launched(ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64)(report))
    return found


if __name__ == "__main__":
    with emulator.loaded(), pf.using("cuda"):
        run_every_kernel()
    print(json.dumps(shared_bytes()))
