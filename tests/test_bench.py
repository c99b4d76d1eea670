"""The benchmark reports a speed only for kernels that compute the right thing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# One small case, run as a program of its own: nothing imports bench. A third argument names an op to spoil.
RUN = """
import dataclasses, sys, torch
import pypeft_fast, bench.cases, bench.run
from pypeft_fast._op import OPS

def halved(function):
    def run(*args):
        out = function(*args)
        return tuple(0.5 * o for o in out) if isinstance(out, tuple) else 0.5 * out
    return run

p, dtype, *spoiled = sys.argv[1:]
bench.run.CASES[:] = [bench.cases.Case(16, 24, 40, r=4, p=float(p), dtype=getattr(torch, dtype))]
for op in (OPS[name] for name in spoiled):
    op.kernels = [
        k if k.name == "reference" else dataclasses.replace(k, function=halved(k.function)) for k in op.kernels
    ]
bench.run.main(["--repeats", "1"])
"""


def bench(*arguments):
    run = [sys.executable, "-c", RUN, *arguments]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("p,dtype", [("0", "float32"), ("0.25", "bfloat16")])
def test_reports_a_time_of_each_and_their_ratios(p, dtype):
    done = bench(p, dtype)
    assert done.returncode == 0, done.stderr
    machine, _, _, header, row = done.stdout.splitlines()
    assert "one thread" in machine and header.split()[-1] == "kernels"
    eager, peft, ours, eager_ratio, peft_ratio = map(float, row.split(dtype)[1].split()[:5])
    assert min(eager, peft, ours) > 0
    assert eager_ratio == pytest.approx(eager / ours, rel=0.2) and peft_ratio == pytest.approx(peft / ours, rel=0.2)


@pytest.mark.parametrize("op,p,result", [("lora_linear", "0", "y"), ("lora_da", "0.25", "dA")])
def test_reports_no_speed_of_a_wrong_kernel(op, p, result):
    done = bench(p, "float32", op)
    assert done.returncode == 1 and f"{result} is off by" in done.stderr and "no speed is reported" in done.stderr
    assert done.stdout.splitlines()[-1].split()[-1] == "kernels"
