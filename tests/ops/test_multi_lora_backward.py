"""Gradients for rows of several adapters: equal to those of each adapter alone, whatever else is in the batch."""

from itertools import product

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops.lora_backward import lora_backward
from pypeft_fast.ops.multi_lora_backward import multi_lora_backward
from pypeft_fast.testing import Case, assert_agrees, available, sample
from tests.ops.rejections import assert_rejects
from tests.ops.test_multi_lora_forward import MANY, _first

KERNELS = available(OPS["multi_lora_backward"])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", MANY, ids=str)
def test_agrees_for_any_number_of_adapters(kernel, case, poisoned):
    assert_agrees("multi_lora_backward", kernel, case)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("needs", [n for n in product((True, False), repeat=3) if any(n)], ids=str)
def test_only_needed_gradients_are_computed(kernel, needs, poisoned):
    for p in (0.0, 0.3):
        assert_agrees("multi_lora_backward", kernel, Case(9, 20, 12, 3, p, options={"needs": needs}))


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, torch.tensor(1.0), ValueError, "dY must have at least 1 dimension"),
        (0, lambda dY: dY[:, 1:], ValueError, r"lora_B\[0\] has shape \(10, 3\), expected \(9, 3\)"),
        (1, None, ValueError, "x is None but need_dX=True, need_dA=True"),
        (1, lambda x: x[1:], ValueError, r"x has shape \(5, 20\), expected \(6, 20\)"),
        (2, None, ValueError, "weight is None but need_dX=True"),
        (2, lambda W: W[:, 1:], ValueError, r"weight has shape \(10, 19\), expected \(10, 20\)"),
        (3, _first(lambda A: A[1:]), ValueError, r"lora_B\[0\] has shape \(10, 3\), expected \(10, 2\)"),
        (3, [], ValueError, "lora_A is empty"),
        (5, lambda i: i[1:], ValueError, r"adapter_index has shape \(5,\), expected \(6,\)"),
        (6, lambda s: s[:, 1:], ValueError, r"s has shape \(6, 5\), expected \(6, 6\)"),
        (7, None, ValueError, "mask is None but .* ask for it"),
        (7, lambda mask: mask.bool(), TypeError, "mask is torch.bool; pass the packed uint8 mask"),
        (8, [1.0], ValueError, "scalings has 1 elements for 5 adapters"),
        (9, [-0.1] * 5, ValueError, "p=-0.1 must be in"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("multi_lora_backward", index, value, error, words)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_each_adapter_equals_its_run_alone(kernel, n):
    """Compares with lora_backward of the rows of each adapter alone; the last adapter has no rows and gets zeros."""
    args = sample("multi_lora_backward", Case(3 * n + 5, 50, 70, 16, 0.4, options={"adapters": n}))
    dY, x, W, A, B, index, s, mask, scalings, ps, *needs = args
    with pf.using(kernel):
        dX, dA, dB = multi_lora_backward(*args)
        for a in range(0, n, max(1, n // 8) if kernel == "triton" else 1):  # Triton's interpreter is slow
            own, r = index == a, A[a].shape[0]
            of_s, bits = s[own, :r].contiguous(), mask[own] if ps[a] > 0 else None
            alone = lora_backward(
                dY[own], x[own], W, A[a], B[a], of_s, bits, scalings[a], ps[a], True, True, True, A[a].dtype
            )
            for mine, wanted in zip((dX[own], dA[a], dB[a]), alone, strict=True):
                torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(dX[index < 0], dY[index < 0] @ W)
    assert n == 1 or not (index == n - 1).any() and not dA[-1].any() and not dB[-1].any()


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_the_other_rows_nor_the_threads_change_a_bit(dtype, set_threads):
    args = list(sample("multi_lora_backward", Case(197, 130, 300, 16, 0.3, dtype)))
    once = multi_lora_backward(*args)
    own = args[5] == 2
    set_threads(2)
    several = multi_lora_backward(*args)
    set_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(once[1] + once[2], several[1] + several[2], strict=True))
    args[5] = torch.where(own, 2, torch.where(args[5] == 0, 1, -1))
    args[0], args[1] = (torch.where(own.unsqueeze(1), t, float("nan")) for t in args[:2])
    again = multi_lora_backward(*args)
    assert own.any() and torch.equal(once[0][own], again[0][own])
    assert torch.equal(once[1][2], again[1][2]) and torch.equal(once[2][2], again[2][2])


def test_small_example():
    dY, x, W = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[5.0], [6.0], [7.0]]), torch.tensor([[4.0]])
    A, B, s = [torch.tensor([[2.0]])] * 2, [torch.tensor([[10.0]]), torch.tensor([[1.0]])], torch.ones(3, 1)
    index, none = torch.tensor([0, -1, 0]), [0.0, 0.0]
    dX, dA, dB = multi_lora_backward(dY, x, W, A, B, index, s, None, [0.5, 9.0], none, True, True, True)
    assert dX.tolist() == [[4 + 5 * 2.0], [8.0], [12 + 15 * 2.0]]
    assert [t.item() for t in dA] == [5 * 5 + 15 * 7, 0] and [t.item() for t in dB] == [0.5 * (1 + 3), 0]
