"""The GPU benchmark on the CPU with another clock: its checks, its times, what it leaves out, and its files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device import ON_GPU

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import dataclasses, sys, torch
import bench.harness.cases, bench.gpu
from bench.harness.timing import interleaved
folder, *spoiled = sys.argv[1:]
bench.gpu.prepare = lambda: None
bench.gpu.all_cases = lambda: [
    bench.harness.cases.Case(16, 24, 40, r=16, p=p, dtype=torch.bfloat16, adapter=a, kind=k)
    for p, a, k in ((0.25, torch.float32, "lora"), (0.0, torch.bfloat16, "lora"), (0.25, torch.float32, "ia3"))
]
for name in spoiled:
    right = bench.harness.cases.PROVIDERS[name]
    def build(case, operands, right=right):
        step = right.build(case, operands)
        return lambda: tuple(0.5 * t for t in step())
    bench.harness.cases.PROVIDERS[name] = dataclasses.replace(right, build=build)
timer = lambda steps, seconds: interleaved(steps, seconds=seconds, least=1)
bench.gpu.main(["--seconds", "0", "--no-compiled", "--output", folder], timer, lambda: {"gpu": "none"})
"""


def run(*arguments, code=RUN, **environment):
    command = [sys.executable, "-W", "ignore", *(("-c", code) if code else ("-m", "bench.gpu")), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=240)


@pytest.mark.cpu
def test_every_provider_is_right_and_timed(tmp_path):
    done = run(tmp_path, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "gpu.json").read_text())
    mixed, plain, ia3 = data["results"]
    here = {"frozen", "PEFT", "addmm", "ours", "ours blas", "ours triton"}
    assert set(mixed["seconds"]) == set(plain["seconds"]) == here and data["wrong"] == []
    assert set(ia3["seconds"]) == {"frozen", "PEFT IA3", "ours IA3"}
    assert all(t > 0 for r in data["results"] for t in r["seconds"].values())
    assert [what for what, *_ in data["targets"]] == [
        "time / frozen layer, bfloat16, p=0, mean",
        "speed-up over PEFT, bfloat16, p=0, worst",
        "speed-up over addmm, bfloat16, p=0, worst",
    ]
    assert "gpu none" in (tmp_path / "gpu.md").read_text() and (tmp_path / "gpu.png").stat().st_size > 1000


@pytest.mark.cpu
def test_a_wrong_provider_is_named_and_not_timed(tmp_path):
    done = run(tmp_path, "ours triton", "addmm", TRITON_INTERPRET="1")
    assert done.returncode == 1 and "not timed, because wrong:\naddmm, 16x24x40" in done.stderr
    for result in json.loads((tmp_path / "gpu.json").read_text())["results"][:2]:
        assert {"ours", "PEFT"} < set(result["seconds"]) and not {"addmm", "ours triton"} & set(result["seconds"])


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    done = run("--output", tmp_path, code=None)
    assert done.returncode == 1 and "bench.gpu needs a GPU, and PyTorch" in done.stderr and not list(tmp_path.iterdir())
