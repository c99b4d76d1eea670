import pytest
import torch

from pypeft_fast.ops.lora_forward import lora_forward
from pypeft_fast.testing import Case, assert_agrees
from tests.ops.rejections import assert_rejects


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, torch.tensor(1.0), ValueError, "x must have at least 1 dimension"),
        (0, lambda x: x.int(), TypeError, "x has dtype torch.int32"),
        (1, lambda W: W[:, 1:], ValueError, r"expected \(.., 19\): weight of shape \(10, 19\) takes 19"),
        (0, lambda x: x[..., 1:], ValueError, r"x has shape \(.*19\), expected \(.., 20\): weight of shape \(10, 20\)"),
        (1, lambda W: W.half(), TypeError, "weight is torch.float16 but x is torch.float32"),
        (1, lambda W: W[0], ValueError, "weight must have 2 dimensions"),
        (2, lambda b: b[1:], ValueError, r"bias has shape \(9,\), expected \(10,\)"),
        (2, lambda b: b.double(), TypeError, "bias is torch.float64 but x is torch.float32"),
        (3, lambda A: A[:, 1:], ValueError, r"lora_A has shape \(3, 19\), expected \(3, 20\)"),
        (3, lambda A: A[:0], ValueError, "the rank must be at least 1"),
        (3, lambda A: A.bfloat16(), TypeError, "lora_A is torch.bfloat16 over a torch.float32 x"),
        (4, lambda B: B[:, 1:], ValueError, r"lora_B has shape \(10, 2\)|s has shape"),
        (4, lambda B: B[1:], ValueError, r"lora_B has shape \(9, 3\), expected \(10, 3\)"),
        (4, lambda B: B.half(), TypeError, "lora_B is torch.float16 over a torch.float32 x"),
        (6, 1.0, ValueError, "p=1.0 must be in"),
        (6, 1 - 2**-18, ValueError, "p=0.9999961853027344"),  # rounds to 65536 of 65536
        (6, 0.0, ValueError, "give a seed if and only if p > 0"),
        (7, None, ValueError, "give a seed if and only if p > 0"),
        (7, lambda seed: seed.int(), TypeError, "seed must be an int64 tensor"),
        (7, lambda seed: seed.repeat(3), ValueError, "seed has 3 elements; give one"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("lora_forward", index, value, error, words)


@pytest.mark.parametrize("x", [torch.ones(2), torch.ones(1, 2), torch.ones(3, 1, 2)], ids=lambda x: str(x.dim()))
def test_small_example(x):
    weight, A, B = torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0, 20.0]]), torch.tensor([[0.5]])
    y, s, mask = lora_forward(x, weight, torch.tensor([1.0]), A, B, 2.0, 0.0, None)
    assert y.shape == (*x.shape[:-1], 1) and s.shape == (x.numel() // 2, 1) and mask.shape == (0, 1)
    assert (y == 3 + 4 + 1 + 2 * 30 * 0.5).all() and (s == 30).all()


@pytest.mark.cpu
def test_autocast_leaves_a_direct_call_alone(poisoned):
    assert_agrees("lora_forward", "cpu", Case(40, 70, 41, 6, 0.4), within=torch.autocast("cpu", torch.bfloat16))
