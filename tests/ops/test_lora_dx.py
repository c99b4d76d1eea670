import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops.lora_dx import lora_dx
from pypeft_fast.testing import available
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", ["fp8", "nf4"])
def test_what_follows_the_codes_in_memory_is_not_read(dtype, format):
    """An odd number of rows; the scales after theirs stand for NaN, and so do the bytes after the codes of fp8."""
    N, K, M, r = 33, 64, 40, 2
    codes = torch.full((N * K + K,), 0x7F, dtype=torch.uint8)
    codes[: N * K] = 0x38 if format == "fp8" else 0xFF  # 1.0
    scales = torch.full((N + 8,), torch.nan)
    scales[:N] = 0.5  # of a row, and of a block of 64 codes
    if format == "fp8":
        frozen = pf.Frozen("fp8", (codes[: N * K].view(torch.float8_e4m3fn).view(N, K), scales[:N]), None, dtype)
    else:
        frozen = pf.Frozen("nf4", (codes[: N * K // 2].unsqueeze(1), scales[:N]), (N, K), dtype)
    dY, no_mask = torch.ones(M, N, dtype=dtype), torch.empty(0, 0, dtype=torch.uint8)
    args = dY, frozen, torch.zeros(M, r, dtype=dtype), torch.zeros(r, K, dtype=dtype), no_mask, 0.0
    with pf.using("cpu"):
        dX = lora_dx(*args)
    torch.testing.assert_close(dX, torch.full((M, K), N * 0.5, dtype=dtype))


@pytest.mark.parametrize("kernel", available(OPS["lora_dx"]))
def test_a_rank_of_zero_is_refused(kernel):
    args = torch.ones(12, 5), torch.ones(5, 8), torch.ones(12, 0), torch.ones(0, 8), torch.empty(0, 0).byte(), 0.0
    for given in (args, tuple(t.bfloat16() if t.is_floating_point() else t for t in args[:5]) + (0.0,)):
        with (
            pf.using(kernel),
            pytest.raises(ValueError, match=r"lora_A has shape \(0, 8\): the rank must be at least 1"),
        ):
            lora_dx(*given)


@pytest.mark.parametrize("M", [1, 3, 8, 16, 40])
@pytest.mark.parametrize("wide", ["dS", "lora_A"])
def test_a_float32_factor_beside_a_bfloat16_one_is_not_rounded(wide, M):
    """dX = (1 + 2^-12) - 1, of which bfloat16 factors would leave nothing."""
    N, K, most = 33, 64, 1 + 2**-12
    weight = torch.zeros(N, K, dtype=torch.bfloat16)
    dS, A = torch.tensor([[1.0, -1.0]]).expand(M, 2), torch.ones(2, K)
    if wide == "dS":
        dS, A = dS * torch.tensor([most, 1.0]), A.bfloat16()
    else:
        dS, A = dS.bfloat16(), A * torch.tensor([[most], [1.0]])
    dY, no_mask = torch.randn(M, N).bfloat16(), torch.empty(0, 0, dtype=torch.uint8)
    with pf.using("cpu"):
        dX = lora_dx(dY, weight, dS, A, no_mask, 0.0)
    assert torch.equal(dX, torch.full((M, K), 2**-12, dtype=torch.bfloat16))
