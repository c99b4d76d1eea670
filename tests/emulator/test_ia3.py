"""The kernels of IA3 in both variants: sums for dl over many tiles, any layout of l, and rows that do not exist."""

import dataclasses

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, assert_agrees, sample
from tests import emulator

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def _loaded():
    with emulator.loaded():
        yield
    emulator.configure()


def of(case, feedforward, **options):
    return dataclasses.replace(case, options={"feedforward": feedforward, **options})


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
    """The factors are read element by element, so the results are the same bits. 4 rows are decoded, 40 are not."""
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
    """The rows of a tile past the last row are 0, and 0 times an infinite weight is NaN."""
    args = list(sample("ia3_dx_dl", of(Case(5, 16, 24, dtype=BF16), feedforward)))
    args[0], args[3] = args[0].abs() + 1, args[3].abs() + 1
    args[1] = args[1].index_fill(1, torch.tensor([3]), torch.inf)
    with pf.using("cuda"):
        dl = OPS["ia3_dx_dl"](*args)[1]
    with pf.using("reference"):
        torch.testing.assert_close(dl, OPS["ia3_dx_dl"](*args)[1])
    assert dl.isinf().any() == feedforward
