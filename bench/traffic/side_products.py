"""What bounds lora_shrink, lora_ds_db and lora_da on sm_90: bytes, or the instructions of bench/static/budget.py."""

import re

from ..harness.targets import markdown
from ..static.budget import BUDGETS

TARGET = "sm_90"
LAUNCHES = {"lora_shrink, dropout": "_lora_shrink", "lora_ds_db": "_lora_ds_db", "lora_da, dropout": "_lora_da"}
# Of csrc/cuda: (kernel, the end of its template arguments, elements of the long operand for a thread in a step).
CUDA = {
    "lora_shrink, dropout": ("shrink_kernel", "(Fill)0, 16", 64 * 64 / 128),
    "lora_ds_db": ("gradient::kernel", "(Fill)0, 16, false", 16 * 512 / 256),
    "lora_da, dropout": ("gradient::kernel", "(Fill)0, 16, true", 64 * 128 / 256),
}


def an_element_in_cuda(launch, dtypes):
    kernel, ending, elements = CUDA[launch]
    (most,) = (budget[TARGET] for (name, kind, config), budget in BUDGETS.items()
               if (name, kind) == (kernel, dtypes) and config.endswith(ending))  # fmt: skip
    return most / elements


def an_element(launch, dtypes):
    """Instructions of a thread for each element of the long operand, at most: what the launch's budget allows."""
    budgets = [(config, most[TARGET]) for (name, kind, config), most in BUDGETS.items()
               if (name, kind) == (launch, dtypes) and TARGET in most]  # fmt: skip
    ((config, most),) = budgets
    rows, columns = map(int, config.split("x")[:2])
    return most * 32 * int(re.search(r"-w(\d+)", config)[1]) / (rows * columns)


def issued(gpu, instructions):
    """Seconds of instructions of a thread: a multiprocessor issues four warps' a clock, twice its 64 integers."""
    return instructions / (2 * gpu.integers)


def table(gpus, step, shape):
    """Microseconds of issue for adapters of both dtypes, and of memory."""
    moved = {kernel.name: kernel.bytes for kernel in step.kernels}
    rows = []
    for launch, kernel in LAUNCHES.items():
        elements = shape.M * (shape.N if kernel == "_lora_ds_db" else shape.K)
        for language, count_of in (("Triton", an_element), ("CUDA C++", an_element_in_cuda)):
            counts = [count_of(launch, dtypes) for dtypes in ("bf16", "bf16+fp32")]
            cells = []
            for gpu in gpus:
                cells += [f"{1e6 * issued(gpu, count * elements):.1f}" for count in counts]
                cells.append(f"{1e6 * moved[kernel] / (gpu.bandwidth * 1e9):.1f}")
            rows.append((f"`{launch}`", language, *(f"{count:.1f}" for count in counts), *cells))
    header = ["launch", "by", "an element, bf16", "float32"]
    for gpu in gpus:
        header += [f"{gpu.name} issue, bf16", f"{gpu.name} issue, float32", f"{gpu.name} memory"]
    return markdown(tuple(header), rows)
