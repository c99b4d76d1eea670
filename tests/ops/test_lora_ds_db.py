import pytest
import torch

from pypeft_fast import using
from pypeft_fast._op import OPS
from pypeft_fast.ops.lora_ds_db import lora_ds_db
from pypeft_fast.testing import Case, assert_agrees, available
from tests.ops.rejections import assert_rejects


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda dY: dY[:, 0], ValueError, "dY must have 2 dimensions"),
        (1, lambda B: B[1:], ValueError, r"lora_B has shape \(9, 3\), expected \(10, 3\)"),
        (2, lambda s: s[:, 1:], ValueError, r"s has shape \(6, 2\), expected \(6, 3\)"),
        (2, lambda s: s.half(), TypeError, "s is torch.float16"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("lora_ds_db", index, value, error, words)


@pytest.mark.parametrize("need", [(True, False), (False, True), (False, False)], ids=str)
@pytest.mark.parametrize("kernel", available(OPS["lora_ds_db"]))
def test_results_that_are_not_needed_are_empty(kernel, need, poisoned):
    assert_agrees("lora_ds_db", kernel, Case(70, 8, 33, 5, options={"need": need}))


@pytest.mark.parametrize("kernel", available(OPS["lora_ds_db"]))
def test_an_expanded_gradient(kernel):
    """The gradient of a sum is one element with strides of 0."""
    dY, B, s = torch.ones(()).expand(9, 4), torch.randn(4, 2), torch.randn(9, 2)
    with using(kernel):
        dS, dB = lora_ds_db(dY, B, s, 3.0, True, True)
    torch.testing.assert_close(dS, 3 * B.sum(0).expand(9, 2))
    torch.testing.assert_close(dB, 3 * s.sum(0).expand(4, 2))


@pytest.mark.parametrize("rows", [3, 40])
@pytest.mark.parametrize("kernel", available(OPS["lora_ds_db"]))
def test_a_scaling_that_is_nan_reaches_both_gradients(kernel, rows):
    dY, B, s = torch.randn(rows, 65), torch.randn(65, 65), torch.randn(rows, 65)
    with using(kernel):
        dS, dB = OPS["lora_ds_db"](dY, B, s, float("nan"), True, True)
    assert dS.isnan().all() and dB.isnan().all()
