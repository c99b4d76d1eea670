import pytest
import torch

from pypeft_fast.ops.lora_dx import lora_dx
from tests.ops.rejections import assert_rejects


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda dY: dY[0], ValueError, "dY must have 2 dimensions"),
        (1, lambda W: W.t(), ValueError, r"weight has shape \(20, 10\), expected \(10, 10\)"),
        (1, lambda W: W.half(), TypeError, "weight is torch.float16 but dY is torch.float32"),
        (2, lambda dS: dS[1:], ValueError, r"dS has shape \(5, 3\), expected \(6, 3\)"),
        (3, lambda A: A[:, 1:], ValueError, r"lora_A has shape \(3, 19\), expected \(3, 20\)"),
        (4, lambda mask: mask[:, 1:], ValueError, r"mask has shape \(6, 2\), expected \(6, 3\)"),
        (4, lambda mask: mask.bool(), TypeError, "mask is torch.bool; pass the packed uint8 mask"),
        (5, 1.5, ValueError, "p=1.5 must be in"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("lora_dx", index, value, error, words)


def test_small_example():
    dY, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    dS, A, mask = torch.tensor([[7.0]]), torch.tensor([[1.0, 10.0]]), torch.tensor([[0b10]], dtype=torch.uint8)
    assert lora_dx(dY, weight, dS, A, mask, 0.5).tolist() == [[3 + 10, 4 + 12 + 2 * 70]]
