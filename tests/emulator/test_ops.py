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
def test_every_schedule_and_number_of_multiprocessors_gives_the_same_bits(op):
    args = sample(op, Case(37, 96, 40, 8, 0.3, BF16))
    with pf.using("cuda"):
        outputs = []
        for seed in range(20):
            emulator.configure(seed)
            outputs.append(OPS[op](*args))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=0)


# Of everything an op is given and returns, in a size that fills tiles: bytes that its kernels move, over the fewest.
ALIGNED = [Case(128, 256, 192, 16, 0.3, BF16), Case(8, 512, 256, 16, 0.0, BF16)]


def nbytes(values):
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


@pytest.mark.parametrize("op", CUDA)
@pytest.mark.parametrize("case", ALIGNED, ids=str)
def test_accesses_are_coalesced_free_of_conflicts_and_few(op, case):
    args = sample(op, case)
    with pf.using("cuda"), emulator.counting() as counted:
        outputs = OPS[op](*args)
    c = counted()
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert 1 <= c.launches <= 2
    assert c.load.sectors <= 1.05 * c.load.needed and c.store.sectors <= 1.05 * c.store.needed
    assert c.shared_load.conflicts <= 0.01 * c.shared_load.requests
    assert c.shared_store.conflicts <= 0.01 * c.shared_store.requests
    if c.launches == 1:  # no partial sums in between
        assert 32 * c.load.first == pytest.approx(nbytes(args), rel=0.05)
        assert 32 * c.store.first == pytest.approx(nbytes(outputs), rel=0.05)
