"""IA3's kernels beyond what every op is asked: where l and its gradient meet the product, in both variants."""

import dataclasses

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from tests import emulator
from tests.emulator.test_ops import nbytes
from tests.ops.checks import Case, assert_agrees, sample

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LARGE = Case(300, 264, 272, dtype=BF16)
VARIANTS = [(op, feedforward) for op in ("ia3_linear", "ia3_dx_dl") for feedforward in (False, True)]
EVERY_VARIANT = pytest.mark.parametrize("op,feedforward", VARIANTS)


@pytest.fixture(autouse=True)
def _loaded():
    with emulator.loaded():
        yield
    emulator.configure()


def of(case, feedforward, **options):
    return dataclasses.replace(case, options={"feedforward": feedforward, **options})


@EVERY_VARIANT
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_every_schedule_gives_the_same_bits(op, feedforward, multiprocessors):
    """Several tiles and several parts of dl; large tiles and small ones."""
    args = sample(op, of(LARGE if multiprocessors == 1 else Case(70, 72, 136, dtype=BF16), feedforward))
    outputs = []
    with pf.using("cuda"):
        for seed in range(3 if multiprocessors == 1 else 20):
            emulator.configure(seed, multiprocessors=multiprocessors)
            outputs.append(OPS[op](*args))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=0)


@pytest.mark.parametrize("feedforward", [False, True])
@pytest.mark.parametrize("dtype,adapter", [(F32, None), (BF16, None), (F16, F32)])
@pytest.mark.parametrize("multiprocessors", [1, 132])
def test_dl_is_summed_over_many_tiles_and_many_blocks(feedforward, dtype, adapter, multiprocessors, poisoned):
    emulator.configure(multiprocessors=multiprocessors)
    for need in ((True, True), (False, True)):
        assert_agrees("ia3_dx_dl", "cuda", of(Case(300, 200, 264, 1, 0, dtype, adapter), feedforward, need=need))


@pytest.mark.parametrize(
    "op,at,feedforward", [("ia3_linear", 3, True), ("ia3_dx_dl", 2, False), ("ia3_linear", 3, False)]
)
@pytest.mark.parametrize("dtype,adapter", [(F32, None), (BF16, None), (BF16, F32)])
@pytest.mark.parametrize("M", [4, 40])
def test_a_misaligned_or_strided_l(op, at, feedforward, dtype, adapter, M):
    """Read element by element, the factors and hence the results are the same; 4 rows are decoding's."""
    args = sample(op, of(Case(M, 72, 80, dtype=dtype, adapter=adapter), feedforward))
    with pf.using("cuda"):
        expected = OPS[op](*args)
        for view in (lambda wide: wide[1::2], lambda wide: wide[1 : 1 + len(wide) // 2]):
            args = list(args)
            moved = view(torch.zeros(2 * len(args[at]) + 2, dtype=args[at].dtype))[: len(args[at])]
            args[at] = moved.copy_(args[at])
            torch.testing.assert_close(OPS[op](*args), expected, rtol=0, atol=0)


@pytest.mark.parametrize("feedforward", [False, True])
def test_rows_that_do_not_exist_add_nothing_to_dl(feedforward):
    """A tile's rows past the last are zeros, and zero times an infinite weight is not a number."""
    args = list(sample("ia3_dx_dl", of(Case(5, 16, 24, dtype=BF16), feedforward)))
    args[0], args[3] = args[0].abs() + 1, args[3].abs() + 1
    args[1] = args[1].index_fill(1, torch.tensor([3]), torch.inf)
    with pf.using("cuda"):
        dl = OPS["ia3_dx_dl"](*args)[1]
    with pf.using("reference"):
        torch.testing.assert_close(dl, OPS["ia3_dx_dl"](*args)[1])
    assert dl.isinf().any() == feedforward


def counted(op, case):
    args = sample(op, case)
    with pf.using("cuda"), emulator.counting() as counters:
        outputs = OPS[op](*args)
    return counters(), nbytes(args), nbytes(outputs)


@EVERY_VARIANT
@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize("M", [8, 256])
def test_launches_traffic_and_conflicts(op, feedforward, dtype, M):
    """What is read and written once, in one launch but for the parts of dl; 8 rows forward are decoding's."""
    case = of(Case(M, 256, 256, dtype=dtype), feedforward)
    c, given, returned = counted(op, case)
    moved, beyond = 32 * (c.load.first + c.store.first), 0.02 if op == "ia3_dx_dl" else 0
    assert c.launches == (2 if op == "ia3_dx_dl" else 1)
    assert given + returned <= moved + 64 and moved <= (1 + beyond) * (given + returned) + 64
    assert c.load.sectors + c.store.sectors <= 1.05 * (c.load.needed + c.store.needed)
    assert c.ldmatrix.conflicts == c.copies.conflicts == c.shared_load.conflicts == 0
    decoding = op == "ia3_linear" and M == 8  # at its end, once, the four stores of its warps take two turns each
    assert c.shared_store.conflicts <= (256 // 16 * 8 * 4 if decoding else 0)
