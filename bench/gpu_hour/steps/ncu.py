"""Nsight Compute's counters for one launch each of lora_shrink, lora_linear, and lora_linear for eight rows, with each
kernel."""

import csv
import io
import itertools
import os
import subprocess
import sys

import torch

import pypeft_fast as pf
from pypeft_fast import _own  # noqa: F401 - registers all ops
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, available, sample

from .. import device, found
from ..device import BF16
from ..process import ROOT
from .sanitize import path_of

CASES = device.sized(
    {"lora_shrink": (4096, 4096, 4096, 0.05), "lora_linear": (4096, 4096, 4096, 0.0), "decode": (8, 4096, 4096, 0.0)},
    {"lora_shrink": (16, 24, 40, 0.25), "lora_linear": (16, 24, 40, 0.0), "decode": (8, 24, 40, 0.0)},
)
KERNELS = ("cuda", "triton")
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "launch__registers_per_thread",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed", "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active", "smsp__inst_executed.sum",
    "sm__inst_executed_pipe_tensor.sum", "smsp__cycles_active.avg",
)  # fmt: skip


def launch(name, kernel):
    """Runs the op twice: the first call compiles, and the profiler records only the second call."""
    M, K, N, p = CASES[name]
    op = OPS["lora_linear" if name == "decode" else name]
    if kernel not in available(op):
        return
    args = sample(op.name, Case(M, K, N, 16, p, BF16, bias=False))
    with pf.using(kernel):
        op(*args)
        device.synchronize()
        if not device.REHEARSED:
            torch.cuda.cudart().cudaProfilerStart()
        op(*args)
        device.synchronize()
        if not device.REHEARSED:
            torch.cuda.cudart().cudaProfilerStop()


def table(text):
    """[{metric: value with its unit, "kernel": name}] of ncu's CSV, one dict per launch."""
    lines = text.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID"')), None)
    found = {}
    for row in csv.DictReader(io.StringIO("\n".join(lines[start:]))) if start is not None else ():
        values = found.setdefault(row["ID"], {"kernel": row["Kernel Name"][:200]})
        values[row["Metric Name"]] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def main():
    device.prepare()
    if device.REHEARSED:
        for name in CASES:
            launch(name, "triton")
        print(table('==PROF== \n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n"0","k","t","us","1"'))
    tool = path_of("ncu")
    if tool is None:
        found.skip("ncu is not on PATH nor in CUDA_HOME")
    command = [tool, "--csv", "--profile-from-start", "off", "--clock-control", "none", "--metrics", ",".join(METRICS),
               sys.executable, "-m", "bench.gpu_hour.steps.ncu", "launch"]  # fmt: skip
    given = os.environ | {"PYPEFT_FAST_TUNE": "0"}  # otherwise tuning would time the candidates under the profiler
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr, sep="\n")
    launches = table(done.stdout)
    found.keep(launches=launches, line=f"{len(launches)} launches")
    if not launches:
        sys.exit(f"ncu has recorded no launch, exit status {done.returncode}; see its output above")


if __name__ == "__main__":
    if sys.argv[1:] == ["launch"]:
        device.prepare()
        for every in itertools.product(CASES, KERNELS):
            launch(*every)
    else:
        main()
