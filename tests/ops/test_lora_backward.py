from itertools import product

import pytest
import torch

from pypeft_fast._op import OPS
from pypeft_fast.ops.lora_backward import lora_backward
from pypeft_fast.testing import Case, assert_agrees, available, sample
from tests.ops.rejections import assert_rejects


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, torch.tensor(1.0), ValueError, "dY must have at least 1 dimension"),
        (0, lambda dY: dY[:, 1:], ValueError, r"lora_B has shape \(10, 3\), expected \(9, 3\)"),
        (1, lambda x: x[1:], ValueError, r"dS has shape \(6, 3\), expected \(5, 3\)"),
        (1, lambda x: x.half(), TypeError, "x is torch.float16 but dY is torch.float32"),
        (1, None, ValueError, "x is None but need_dX=True, need_dA=True"),
        (2, lambda W: W.t(), ValueError, r"weight has shape \(20, 10\), expected \(10, 10\)"),
        (2, None, ValueError, "weight is None but need_dX=True"),
        (3, lambda A: A[:, 1:], ValueError, r"lora_A has shape \(3, 19\), expected \(3, 20\)"),
        (3, None, ValueError, "lora_A is None but need_dX=True"),
        (4, lambda B: B[:, 1:], ValueError, "s has shape"),
        (5, lambda s: s[1:], ValueError, r"s has shape \(5, 3\), expected \(6, 3\)"),
        (6, lambda mask: mask[:, 1:], ValueError, r"mask has shape \(6, 2\), expected \(6, 3\)"),
        (6, lambda mask: mask.bool(), TypeError, "mask is torch.bool; pass the packed uint8 mask"),
        (6, None, ValueError, "mask is None but .* p=0.3 ask for it"),
        (8, -0.1, ValueError, "p=-0.1 must be in"),
        (12, torch.float16, TypeError, "dtype=torch.float16 must be lora_A's"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("lora_backward", index, value, error, words)


@pytest.mark.parametrize("kernel", available(OPS["lora_backward"]))
@pytest.mark.parametrize("needs", [n for n in product((True, False), repeat=3) if any(n)], ids=str)
def test_only_needed_gradients_are_computed(kernel, needs, poisoned):
    for p in (0.0, 0.3):
        assert_agrees("lora_backward", kernel, Case(9, 20, 12, 3, p, options={"needs": needs}))


def test_arguments_of_gradients_that_are_not_needed_may_be_missing():
    dY, x, weight, A, B, s, mask, *rest = sample("lora_backward", Case(5, 16, 6, 2, 0.0))
    everything = lora_backward(dY, x, weight, A, B, s, mask, *rest)
    scaling, p, *_, dtype = rest
    dX, dA, dB = lora_backward(dY, None, None, None, B, s, None, scaling, p, False, False, True, dtype)
    assert dX.shape == dA.shape == (0,) and torch.equal(dB, everything[2])
    dX, dA, dB = lora_backward(dY, None, weight, A, B, s, None, scaling, p, True, False, False, dtype)
    assert dA.shape == dB.shape == (0,) and torch.equal(dX, everything[0])


def test_small_example():
    dY, x, one = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[5.0]]]), torch.ones(1, 1)
    weight, A, B, s = torch.tensor([[3.0], [4.0]]), torch.tensor([[10.0]]), torch.tensor([[1.0], [0.5]]), 2 * one
    dX, dA, dB = lora_backward(dY, x, weight, A, B, s, None, 3.0, 0.0, True, True, True, torch.float32)
    dS = 3 * (1 + 2 * 0.5)
    assert dX.tolist() == [[[3 + 8 + dS * 10]]] and dA.tolist() == [[dS * 5]] and dB.tolist() == [[6.0], [12.0]]
