import pytest
import torch

from pypeft_fast.ops.lora_linear import lora_linear
from tests.ops.checks import Case, assert_agrees
from tests.ops.rejections import assert_rejects


@pytest.mark.cpu
@pytest.mark.parametrize("M", [1, 8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sums_in_cpp_are_no_rougher_than_eager(M, dtype):
    assert_agrees("lora_linear", "cpu", Case(M, 11008, 264, 5, 0.0, dtype))


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda x: x[None], ValueError, "x must have 2 dimensions"),
        (1, lambda W: W[:, 1:], ValueError, r"weight has shape \(10, 19\), expected \(10, 20\)"),
        (1, lambda W: W.bfloat16(), TypeError, "weight is torch.bfloat16 but x is torch.float32"),
        (2, lambda b: b[1:], ValueError, r"bias has shape \(9,\), expected \(10,\)"),
        (2, lambda b: b[:1], ValueError, "bias has shape"),  # broadcasting would accept it
        (3, lambda s: s[1:], ValueError, r"s has shape \(5, 3\), expected \(6, 3\)"),
        (4, lambda B: B[:, 1:], ValueError, r"lora_B has shape \(10, 2\), expected \(10, 3\)"),
        (4, lambda B: B.t(), ValueError, "lora_B has shape"),
        (4, lambda B: B.double(), TypeError, "lora_B is torch.float64"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("lora_linear", index, value, error, words)


def test_small_example():
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([10.0, 20.0])
    s, B = torch.tensor([[7.0]]), torch.tensor([[1.0], [-1.0]])
    assert lora_linear(x, weight, bias, s, B, 2.0).tolist() == [[11 + 10 + 14, 17 + 20 - 14]]
