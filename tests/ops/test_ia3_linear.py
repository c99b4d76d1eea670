import dataclasses

import pytest
import torch

from pypeft_fast._op import OPS
from pypeft_fast.ops.ia3_linear import ia3_linear
from pypeft_fast.testing import CASES, VARIANTS, Case, assert_agrees, available
from tests.ops.rejections import assert_rejects

KERNELS = available(OPS["ia3_linear"])
FEEDFORWARD = VARIANTS["ia3_linear, feedforward"][1]


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda x: x[0], ValueError, "x must have 2 dimensions"),
        (0, lambda x: x.int(), TypeError, "x has dtype torch.int32"),
        (1, lambda weight: weight[:, 1:], ValueError, r"x has shape \(6, 20\), expected \(.., 19\): weight of"),
        (1, lambda weight: weight.half(), TypeError, "weight is torch.float16 but x is torch.float32"),
        (2, lambda bias: bias[1:], ValueError, r"bias has shape \(9,\), expected \(10,\)"),
        (
            3,
            lambda ia3_l: ia3_l[1:],
            ValueError,
            r"ia3_l has shape \(9,\), expected \(10,\): \[N\] without feedforward",
        ),
        (3, lambda ia3_l: ia3_l[:, None], ValueError, r"ia3_l has shape \(10, 1\), expected \(10,\)"),
        (3, lambda ia3_l: ia3_l.bfloat16(), TypeError, "ia3_l is torch.bfloat16 over a torch.float32 x"),
        (4, True, ValueError, r"ia3_l has shape \(10,\), expected \(20,\): \[K\] with feedforward"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("ia3_linear", index, value, error, words)


def test_small_example():
    x, weight, bias = torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]]), torch.tensor([1.0])
    y, z = ia3_linear(x, weight, bias, torch.tensor([10.0]), False, True)
    assert y.tolist() == [[320.0]] and z.tolist() == [[32.0]]
    y, z = ia3_linear(x, weight, bias, torch.tensor([10.0, 100.0]), True, True)
    assert y.tolist() == [[2201.0]] and z.shape == (0, 1)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", [dataclasses.replace(c, options=FEEDFORWARD) for c in CASES], ids=str)
def test_feedforward_agrees_with_float64(kernel, case, poisoned):
    assert_agrees("ia3_linear", kernel, case)


@pytest.mark.parametrize("dtype,adapter", [(torch.float32, None), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_z_is_empty_if_not_needed(kernel, dtype, adapter, poisoned):
    assert_agrees("ia3_linear", kernel, Case(70, 33, 45, dtype=dtype, adapter=adapter, options={"need_z": False}))
