import dataclasses
from itertools import product

import pytest
import torch

from pypeft_fast import using
from pypeft_fast._op import OPS
from pypeft_fast.ops.ia3_dx_dl import ia3_dx_dl
from pypeft_fast.testing import CASES, VARIANTS, Case, assert_agrees, available
from tests.ops.rejections import assert_rejects

KERNELS = available(OPS["ia3_dx_dl"])
FEEDFORWARD = VARIANTS["ia3_dx_dl, feedforward"][1]
NEED = [(True, False), (False, True), (False, False)]


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda dY: dY[:, 0], ValueError, "dY must have 2 dimensions"),
        (1, lambda weight: weight[1:], ValueError, r"weight has shape \(9, 20\), expected \(10, 20\)"),
        (1, lambda weight: weight.half(), TypeError, "weight is torch.float16 but dY is torch.float32"),
        (2, lambda ia3_l: ia3_l[1:], ValueError, r"ia3_l has shape \(9,\), expected \(10,\)"),
        (2, lambda ia3_l: ia3_l.half(), TypeError, "ia3_l is torch.float16 over a torch.float32 dY"),
        (3, lambda z: z[1:], ValueError, r"saved has shape \(5, 10\), expected \(6, 10\): z \[M, N\] without"),
        (3, lambda z: z.half(), TypeError, "saved is torch.float16 but dY is torch.float32"),
        (4, True, ValueError, r"ia3_l has shape \(10,\), expected \(20,\)"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("ia3_dx_dl", index, value, error, words)


def test_rejects_z_in_place_of_x():
    dY, weight = torch.ones(6, 10), torch.ones(10, 20)
    with pytest.raises(ValueError, match=r"saved has shape \(6, 10\), expected \(6, 20\): x \[M, K\] with feedforward"):
        ia3_dx_dl(dY, weight, torch.ones(20), torch.ones(6, 10), True, True, True)


def test_small_example():
    dY, weight = torch.tensor([[2.0], [3.0]]), torch.tensor([[5.0, 7.0]])
    dX, dl = ia3_dx_dl(dY, weight, torch.tensor([10.0]), torch.tensor([[1.0], [4.0]]), False, True, True)
    assert dX.tolist() == [[100.0, 140.0], [150.0, 210.0]] and dl.tolist() == [2 + 12]
    x, ia3_l = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([10.0, 100.0])
    dX, dl = ia3_dx_dl(dY, weight, ia3_l, x, True, True, True)
    assert dX.tolist() == [[100.0, 1400.0], [150.0, 2100.0]] and dl.tolist() == [10 + 45, 28 + 84]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", [dataclasses.replace(c, options=FEEDFORWARD) for c in CASES], ids=str)
def test_feedforward_agrees_with_float64(kernel, case, poisoned):
    assert_agrees("ia3_dx_dl", kernel, case)


@pytest.mark.parametrize("feedforward,need", list(product([False, True], NEED)), ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_results_that_are_not_needed_are_empty(kernel, feedforward, need, poisoned):
    case = Case(70, 38, 33, dtype=torch.bfloat16, adapter=torch.float32)
    assert_agrees("ia3_dx_dl", kernel, dataclasses.replace(case, options={"feedforward": feedforward, "need": need}))


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_dl_nothing_saved_is_needed(kernel):
    dY, weight, ia3_l = torch.randn(6, 10), torch.randn(10, 20), torch.randn(10)
    with using(kernel):
        dX, dl = ia3_dx_dl(dY, weight, ia3_l, torch.empty(0, 0), False, True, False)
    assert dl.shape == (0,)
    torch.testing.assert_close(dX, (dY * ia3_l) @ weight)


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_expanded_gradient(kernel):
    """The gradient of a sum is one element with strides of 0."""
    dY, weight, z, x = torch.ones(()).expand(9, 4), torch.randn(4, 7), torch.randn(9, 4), torch.randn(9, 7)
    l_N, l_K = torch.randn(4), torch.randn(7)
    with using(kernel):
        dX, dl = ia3_dx_dl(dY, weight, l_N, z, False, True, True)
        dX_feedforward, dl_feedforward = ia3_dx_dl(dY, weight, l_K, x, True, True, True)
    torch.testing.assert_close(dX, (l_N @ weight).expand(9, 7))
    torch.testing.assert_close(dl, z.sum(0))
    torch.testing.assert_close(dX_feedforward, (weight.sum(0) * l_K).expand(9, 7))
    torch.testing.assert_close(dl_feedforward, weight.sum(0) * x.sum(0))


@pytest.mark.parametrize("kernel", KERNELS)
def test_infinity_in_the_last_row_stays_infinity(kernel):
    """The rows of a tile past the end repeat the last row; infinity times 0 would be NaN."""
    dY, weight, x = torch.ones(5, 4), torch.ones(4, 7), torch.ones(5, 7)
    dY[4] = float("inf")
    with using(kernel):
        _, dl = ia3_dx_dl(dY, weight, torch.ones(7), x, True, True, True)
    assert dl.eq(float("inf")).all()
