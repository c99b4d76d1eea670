"""The ops of csrc/cuda on CPU tensors: values, numbers of launches, and the traffic of sums that several blocks share.

test_every_kernel.py tests the schedules and the memory accesses of each kernel. `make test-emulator` also runs all of
tests/ops with these kernels. This file is a sample that is fast enough for `make test`.
"""

import itertools
from pathlib import Path

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.frozen.operand import Frozen
from pypeft_fast.testing import Case, assert_agrees, sample
from tests import emulator
from tests.ops.test_lora_shrink import assert_that_a_threshold_decides

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


@pytest.mark.parametrize("adapter", [BF16, F32])
def test_exactly_the_lanes_that_reach_the_threshold_are_kept(adapter):
    with pf.using("cuda"):
        assert_that_a_threshold_decides(BF16, adapter)


@pytest.mark.parametrize("op", ["lora_shrink", "lora_dx", "lora_da", "lora_ds_db"])
def test_the_stride_of_a_single_row_may_be_anything(op):
    """Addresses beyond the only row are computed, of which nothing is read: they are multiples of 16 all the same."""
    args = sample(op, Case(1, 64, 64, 16, 0.3, BF16))
    gaps = [torch.cat([a, a.new_zeros(1, 3)], 1)[:, : a.shape[1]] if is_row(a) else a for a in args]
    assert any(is_row(a) and a.stride(0) % 8 for a in gaps)
    with pf.using("cuda"):
        torch.testing.assert_close(OPS[op](*gaps), OPS[op](*args), rtol=0, atol=0)


def is_row(value):
    return isinstance(value, torch.Tensor) and value.dim() == 2 and value.shape[0] == 1


def test_tickets_are_zero_for_every_launch():
    """A stream has one buffer, and a larger one if needed. A graph, or a launch without memory, has its own."""
    few, many = (sample("lora_shrink", Case(M, 128, 8, 1, 0.0, BF16)) for M in (5, 64 * 260))
    emulator.configure(multiprocessors=10**6)
    with pf.using("cuda"):
        first = OPS["lora_shrink"](*few)
        with emulator.full():
            without_memory = OPS["lora_shrink"](*many)
        larger = OPS["lora_shrink"](*many)
        torch.testing.assert_close(without_memory, larger, rtol=0, atol=0)
        with emulator.capturing():
            torch.testing.assert_close(OPS["lora_shrink"](*few), first, rtol=0, atol=0)
        for args, before in ((many, larger), (few, first)):
            torch.testing.assert_close(OPS["lora_shrink"](*args), before, rtol=0, atol=0)
    assert first[0].abs().sum() > 0


@pytest.mark.parametrize("M,p", [(8, 0.0), (300, 0.3)])
def test_two_launches_forward_and_three_backward(M, p):
    """The launches of pf.lora_linear on a large GPU, which splits every sum that can be split."""
    shapes = (M, 520), (528, 520), (16, 520), (528, 16)
    x, W, A, B = (torch.randn(shape).bfloat16().requires_grad_() for shape in shapes)
    W.requires_grad_(False)
    with pf.using("cuda"):
        with emulator.counting(multiprocessors=132) as forward:
            y = pf.lora_linear(x, W, A, B, dropout_p=p)
        assert forward().launches == 2
        with emulator.counting(multiprocessors=132) as backward:
            y.backward(torch.ones_like(y))
        assert backward().launches == 3
    assert all(t.grad.abs().sum() > 0 for t in (x, A, B))


def nbytes(values):
    """The bytes of all tensors among `values`, including those of frozen weights and of lists."""
    inner = (v.tensors if isinstance(v, Frozen) else v if isinstance(v, list) else (v,) for v in values)
    return sum(v.nbytes for v in itertools.chain(*inner) if isinstance(v, torch.Tensor))


def needed(op, args):
    """The arguments whose memory the op reads: of the adapters' matrices those that have rows."""
    if op != "multi_lora_forward":
        return args
    x, W, b, A, B, index, *_ = args
    present = [a for a in range(len(A)) if (index == a).any()]
    return x, W, b, [A[a] for a in present], [B[a] for a in present], index


def counted(op, case, multiprocessors=4):
    """(counters of one call, bytes of the arguments that it reads, bytes of its results)."""
    args = sample(op, case)
    with pf.using("cuda"), emulator.counting(multiprocessors=multiprocessors) as counters:
        outputs = OPS[op](*args)
    return counters(), nbytes(needed(op, args)), nbytes(outputs if isinstance(outputs, tuple) else (outputs,))


# Beyond inputs and outputs, the kernels may move the parts of sums that blocks share: 4 r parts / rows (or columns)
# bytes for the 2 bytes of each element of X. The ratio depends on multiprocessors / (M K). 4 multiprocessors with
# 2048 x 1024 have the same ratio as 128 with 16384 x 4096, a layer of a 7B model in training, at PEFT's default rank.
TRAFFIC = {
    "lora_shrink": Case(512, 1024, 8, 8, 0.1, BF16),
    "lora_ds_db": Case(2048, 8, 1024, 8, 0.1, BF16),
    "lora_da": Case(2048, 1024, 8, 8, 0.1, BF16),
}


@pytest.mark.parametrize("op", TRAFFIC)
def test_traffic_is_that_of_one_pass(op):
    """For kernels with sums that several blocks share. test_every_kernel.py tests the other kernels."""
    c, given, returned = counted(op, TRAFFIC[op])
    moved = 32 * (c.load.first + c.store.first)
    assert given + returned <= moved + 64 and moved <= 1.05 * (given + returned)


@pytest.mark.parametrize("op,M", [("lora_da", 1024), ("lora_ds_db", 1024), ("lora_shrink", 64)])
def test_the_parts_of_a_small_layer_stay_few(op, M):
    """These sizes are too small for 132 multiprocessors.

    A sum over `length` elements has at most sqrt(length / 2r) parts, whose bytes are then sqrt(2r / length) of those of
    X. lora_ds_db also has the parts of dS, one for each 512 columns.
    """
    r, length = 8, 1024
    c, given, returned = counted(op, Case(M, 1024, 1024, r, 0.1, BF16), multiprocessors=132)
    most = (2 * r / length) ** 0.5 + (2 * r / 512 if op == "lora_ds_db" else 0)
    assert 0 < 32 * c.store.first - returned <= most * (given + returned) + 64
