"""csrc/cuda's ops on CPU tensors: values, every schedule alike, and what they ask of the memory.

`make test-emulator` runs all of tests/ops on them besides; here is a sample that `make test` has time for.
"""

from pathlib import Path

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from tests import emulator
from tests.ops.checks import Case, assert_agrees, sample

ROOT = Path(__file__).resolve().parents[2]
CUDA = sorted(name for name, op in OPS.items() if any(k.name == "cuda" for k in op.kernels))
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CASES = [
    Case(33, 70, 41, 6, 0.3),
    Case(19, 83, 45, 5, 0.3, BF16, F32),
    Case(64, 64, 64, 16, 0.0, BF16),
    Case(17, 40, 72, 33, 0.3, F16),
    Case(1, 200, 24, 8, 0.0, BF16, bias=False),
    Case(0, 8, 9, 2, 0.5),
    Case(21, 50, 37, 9, 0.3, BF16, layout="strided"),
]


@pytest.fixture(autouse=True)
def _loaded():
    with emulator.loaded():
        yield
    emulator.configure()


def test_every_kernel_file_belongs_to_an_op_that_has_the_kernel():
    files = {p.stem for p in (ROOT / "csrc/cuda").glob("*.cu") if "LIBRARY_IMPL(" in p.read_text()}
    assert files == set(CUDA)


@pytest.mark.parametrize("op", CUDA)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(op, case, poisoned):
    assert_agrees(op, "cuda", case)


@pytest.mark.parametrize("op", CUDA)
def test_every_schedule_gives_the_same_bits(op):
    args = sample(op, Case(37, 96, 40, 8, 0.3, BF16))
    with pf.using("cuda"):
        outputs = []
        for seed in range(20):
            emulator.configure(seed)
            outputs.append(OPS[op](*args))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=0)


def nbytes(values):
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


def counted(op, case):
    """The counters of one call, the bytes that it is given and those that it returns."""
    args = sample(op, case)
    with pf.using("cuda"), emulator.counting() as counters:
        outputs = OPS[op](*args)
    return counters(), nbytes(args), nbytes(outputs if isinstance(outputs, tuple) else (outputs,))


# Sectors that the requests for global memory touch, over the fewest that their bytes need. 1 but for sums of 16 bytes
# or less a row, and in decoding for lora_B, of which each lane walks a row of its own, in L1.
SECTORS = {("lora_shrink", 128): 1.3, ("lora_ds_db", 128): 1.15, ("lora_ds_db", 8): 1.4, ("lora_linear", 8): 2.2}


@pytest.mark.parametrize("op", CUDA)
@pytest.mark.parametrize("case", [Case(128, 256, 192, 16, 0.3, BF16), Case(8, 512, 256, 16, 0.0, BF16)], ids=str)
def test_accesses_are_coalesced_and_the_main_loop_is_free_of_conflicts(op, case):
    c, given, returned = counted(op, case)
    assert c.load.sectors + c.store.sectors <= SECTORS.get((op, case.M), 1.05) * (c.load.needed + c.store.needed)
    assert c.ldmatrix.conflicts == c.copies.conflicts == 0
    # Nothing is read twice from memory: what a first launch stores beyond the outputs, a second one loads.
    assert c.load.first - given / 32 == pytest.approx(c.store.first - returned / 32, abs=0.01 * given / 32)


# A size each, and what may be moved beyond inputs and outputs: partial sums of the parts that M or K are cut into. They
# weigh less the larger the other dimension of what is streamed.
TRAFFIC = {
    "lora_shrink": (Case(512, 1024, 8, 8, 0.1, BF16), 0.05),
    "lora_linear": (Case(256, 256, 256, 16, 0.1, BF16), 0.0),
    "lora_ds_db": (Case(1024, 8, 1024, 8, 0.1, BF16), 0.19),
    "lora_dx": (Case(256, 256, 256, 16, 0.1, BF16), 0.0),
    "lora_da": (Case(1024, 1024, 8, 8, 0.1, BF16), 0.12),
    "ia3_linear": (Case(256, 256, 256, dtype=BF16), 0.0),
    "ia3_dx_dl": (Case(256, 256, 256, dtype=BF16), 0.02),
}


@pytest.mark.parametrize("op", CUDA)
def test_traffic_is_that_of_one_pass(op):
    case, beyond = TRAFFIC[op]
    c, given, returned = counted(op, case)
    moved = 32 * (c.load.first + c.store.first)
    assert given + returned <= moved + 64 and moved <= (1 + beyond) * (given + returned) + 64
