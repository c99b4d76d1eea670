"""The Triton kernels compile for GPUs that this machine does not have. The results are inspected, not run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.cpu
ROOT = Path(__file__).resolve().parents[2]
# Runs in a new process, because with TRITON_INTERPRET a kernel is not an object that the compiler accepts.
START = """
import json, sys
from bench.static.plan import *
from bench.static.triton_rows import compiled, row, rows
from pypeft_fast.kernels import _tiles
def made(jobs):
    return [[r.target, r.kernel, r.faults(), r.tensor_core, r.loads, r.specialized] for r in rows((), jobs)]
"""
SAMPLE = """
on_blackwell = _tiles.candidates("lora_linear", 100, 16).values()
(specialized,) = (c for c in on_blackwell if c.specialize and (c.BO, c.BI) == (128, 64))
jobs = [Job("sm_80", "lora_dx, dropout"), Job("sm_90", "lora_linear"), Job("gfx942", "lora_ds_db"),
        Job("sm_100", "lora_linear", config=specialized)]
planned = {(job.target, job.tuned, str(job.tiles)) for job in plan(FAMILIES)}
tiled = ["lora_shrink", "lora_ds_db", "lora_linear", "lora_linear, scale", "lora_dx", "ia3_dx_dl"]
tiled += [f"{op}{_tiles.SEGMENTS}" for op in ("lora_shrink", "lora_ds_db", "lora_linear", "lora_dx")]
wanted = {(target, op, str(config)) for target in FAMILIES for op in tiled
          for bits in (16, 32) if bits == 16 or op.startswith("lora_linear")
          for config in _tiles.candidates(op, architecture(target), bits).values()}
linear = row(jobs[1])
forward, backward = "multi_lora_forward", "multi_lora_backward"
segments = [Job("sm_80", f"{backward}, ds_db", rank=64), Job("sm_89", f"{backward}, ds_db"),
            Job("gfx942", f"{backward}, ds_db", rank=64), Job("sm_80", f"{backward}, dx, dropout", F32, F32),
            Job("sm_80", f"{forward}, shrink, dropout, split K", F32, F32, tf32=True),
            Job("sm_120", f"{forward}, linear", BF16, F32)]
print(json.dumps([made(jobs), compiled(Job("sm_90", "lora_ds_db")).asm["ptx"], sorted(wanted - planned), len(wanted),
                  made(segments), linear.step, linear.budget]))
"""
EVERY = "print(json.dumps(made([Job(sys.argv[1], name) for name in NAMES])))"
PLANNED = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "MFMA"}


def report(code, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", START + code, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sample():
    """The rows of the report for a few launches, and the PTX of lora_ds_db."""
    return report(SAMPLE)


def test_a_sample_spills_nothing_and_uses_tensor_cores(sample):
    assert [target for target, *_ in sample[0]] == ["sm_80", "sm_90", "gfx942", "sm_100"]
    for target, _, faults, instructions, *_ in sample[0]:
        assert faults == [] and instructions[PLANNED[target]] > 0


def test_rows_of_several_adapters_spill_nothing_where_registers_are_scarce(sample):
    assert len(sample[4]) == 6 and [faults for _, _, faults, *_ in sample[4]] == [[]] * 6


def test_no_matrix_of_half_precision_is_read_element_by_element(sample):
    loads = {kernel: loads for _, kernel, _, _, loads, _ in sample[0]}["lora_dx, dropout"]
    assert loads["16"] > 0 and "2" not in loads


def test_warps_are_specialized_where_the_target_has_it(sample):
    assert [moves for *_, moves in sample[0]][:3] == [None] * 3 and sample[0][3][-1] > 0


def test_partials_are_written_before_the_ticket_and_read_after_it(sample):
    """_reduce.last_of: a barrier, an atomic with release and acquire, another barrier, and loads that bypass L1."""
    events = re.findall(r"bar\.sync|atom\.[\w.]+|ld\.global\.cg|st\.global", sample[1])
    tickets = [i for i, event in enumerate(events) if event.startswith("atom")]
    assert len(tickets) == 2 and all(events[i] == "atom.global.gpu.acq_rel.add.u32" for i in tickets)  # of dS and dB
    for at in tickets:
        before, after = events[:at], events[at + 1 :]
        assert before[-1] == "bar.sync" and "st.global" in before
        first_read = after.index("ld.global.cg")
        assert "bar.sync" in after[:first_read]
    assert "ld.global.cg" not in events[: tickets[0]]


def test_every_tile_that_tuning_may_choose_is_in_the_report(sample):
    assert sample[2] == [] and sample[3] > 150


def test_the_steps_instructions_are_counted(sample):
    """A step of 128 x 128 x 64 has at least the waits, the TMA copies and the products."""
    step, budget = sample[5:]
    assert 40 < step <= budget < 200


@pytest.mark.slow
@pytest.mark.parametrize("target", PLANNED)
def test_every_kernel_spills_nothing_and_uses_the_tensor_cores_it_plans(target):
    rows = report(EVERY, target)
    assert len(rows) >= 33 and all(faults == [] for _, _, faults, *_ in rows)
