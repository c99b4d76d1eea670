"""Triton kernels compile for GPUs that this machine does not have: compiled and checked, not run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
ROOT = Path(__file__).resolve().parents[2]
# In a process of its own: under TRITON_INTERPRET a kernel is not the object that the compiler takes.
COMPILE = """
import dataclasses, json, sys
from bench.gpu_static_triton import rows
made = list(rows((sys.argv[1],), names=json.loads(sys.argv[2]), mixed=False))
print(json.dumps([[row.kernel, row.faults(), row.tensor_core] for row in made]))
"""
NAMES = ["lora_shrink, dropout", "lora_linear", "lora_ds_db", "lora_dx, dropout", "lora_da, dropout",
         "ia3_linear", "ia3_dx_dl, feedforward", "swiglu_backward"]  # fmt: skip
PLANNED = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "MFMA"}


def report(target, names):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, target, json.dumps(names)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("target,names", [("sm_80", NAMES[:1]), ("sm_90", NAMES[1:2]), ("gfx942", NAMES[2:3])])
def test_a_sample_spills_nothing_and_uses_tensor_cores(target, names):
    ((_, faults, instructions),) = report(target, names)
    assert faults == [] and instructions[PLANNED[target]] > 0


@pytest.mark.slow
@pytest.mark.parametrize("target", PLANNED)
def test_every_kernel_spills_nothing_and_uses_the_tensor_cores_it_plans(target):
    made = report(target, NAMES)
    assert [name for name, _, _ in made] == NAMES and all(faults == [] for _, faults, _ in made)
