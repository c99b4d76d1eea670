import pytest
import torch

from pypeft_fast import using
from pypeft_fast._op import OPS
from pypeft_fast.ops.lora_da import lora_da
from pypeft_fast.testing import available
from tests.ops.rejections import assert_rejects


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda dS: dS[1:], ValueError, r"dS has shape \(5, 3\), expected \(6, 3\)"),
        (1, lambda x: x[0], ValueError, "x must have 2 dimensions"),
        (2, lambda mask: mask[1:], ValueError, r"mask has shape \(5, 3\), expected \(6, 3\)"),
        (2, lambda mask: mask.int(), TypeError, "mask is torch.int32"),
        (3, -1.0, ValueError, "p=-1.0 must be in"),
        (4, torch.float16, TypeError, "dtype=torch.float16 must be lora_A's"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("lora_da", index, value, error, words)


def test_small_example():
    dS, x, mask = torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]]), torch.tensor([[0b01]], dtype=torch.uint8)
    assert lora_da(dS, x, mask, 0.5, torch.float32).tolist() == [[20.0, 0.0], [30.0, 0.0]]


@pytest.mark.parametrize("kernel", available(OPS["lora_da"]))
@pytest.mark.parametrize("tie", [65532.5, 65533.5])
def test_a_probability_between_two_thresholds_rounds_to_the_even_one(kernel, tie):
    dS, x, mask = torch.randn(6, 3), torch.randn(6, 20), torch.full((6, 3), 255, dtype=torch.uint8)
    with using(kernel):
        dA = OPS["lora_da"](dS, x, mask, tie / 65536, torch.float32)
    torch.testing.assert_close(dA * (65536 - round(tie)) / 65536, dS.t() @ x)
