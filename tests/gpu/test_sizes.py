"""Sizes that the small cases of tests/ops do not reach: decoding, large tiles, sums of many blocks, large offsets."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import VARIANTS, Case, assert_agrees, available, cut, sample
from tests.device import ON_GPU

if not ON_GPU:
    pytest.skip("needs a GPU: make test-gpu", allow_module_level=True)

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [(BF16, None), (F16, None), (BF16, F32), (F32, None)]
# Every variant of every op that has a kernel in csrc/cuda.
ONE_LAUNCH = [v for v in VARIANTS.values() if any(k.name == "cuda" for k in OPS[v[0]].kernels)]
RUNS = [pytest.param(op, o, k, id="-".join((op, *o, k))) for op, o in ONE_LAUNCH for k in available(OPS[op])]
COMPILED = [name for name in ("cuda", "triton") if name in available(OPS["lora_linear"])]


@pytest.mark.parametrize("dtype,adapter", DTYPES)
@pytest.mark.parametrize("op,options,kernel", RUNS)
@pytest.mark.parametrize("M,K,N", [(1, 1032, 520), (8, 4096, 264), (16, 600, 1040)])
def test_few_rows(op, options, kernel, M, K, N, dtype, adapter, poisoned):
    assert_agrees(op, kernel, Case(M, K, N, 5, 0.0, dtype, adapter, options=options))


@pytest.mark.parametrize("dtype,adapter", DTYPES)
@pytest.mark.parametrize("op,options,kernel", RUNS)
@pytest.mark.parametrize("M,K,N", [(1700, 520, 1800), (1700, 1800, 520)])
def test_more_tiles_than_multiprocessors(op, options, kernel, M, K, N, dtype, adapter, poisoned):
    assert_agrees(op, kernel, Case(M, K, N, 40, 0.3, dtype, adapter, options=options))


@pytest.mark.parametrize("op,options,kernel", RUNS)
@pytest.mark.parametrize("padding", [1, 8])
def test_rows_that_lie_apart(op, options, kernel, padding):
    """A padding of one element prevents copies of 16 bytes; with eight, TMA has a stride unlike the width."""
    args = sample(op, cut(op, kernel, Case(40, 48, 56, 8, 0.3, BF16, options=options)))

    def apart(a):
        if not isinstance(a, torch.Tensor) or a.dim() != 2 or not a.is_floating_point():
            return a
        wide = torch.randn(a.shape[0], a.shape[1] + padding).to(a.dtype)
        wide[:, padding:] = a
        return wide[:, padding:]

    with pf.using(kernel):
        torch.testing.assert_close(OPS[op](*map(apart, args)), OPS[op](*args), rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", COMPILED)
def test_offsets_past_two_to_the_31(kernel):
    """Only the last rows of 2**19 + 64 are not zero; x and y have more than 2**31 elements."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free memory")
    M, wide, narrow, r, last = 2**19 + 64, 4104, 16, 4, 64
    big, small = torch.zeros(M, wide, dtype=BF16), torch.zeros(M, narrow, dtype=BF16)
    big[-last:], small[-last:] = torch.randn(last, wide).bfloat16(), torch.randn(last, narrow).bfloat16()
    A, B = torch.randn(r, wide).bfloat16(), torch.randn(wide, r).bfloat16()
    W, no_mask = torch.randn(wide, narrow).bfloat16(), torch.empty(0, 1, dtype=torch.uint8)

    def close(got, *factors):
        expected = factors[0].double() @ factors[1].double()
        torch.testing.assert_close(got.double(), expected, rtol=2e-2, atol=2e-2 * expected.abs().max().item())

    with pf.using(kernel):
        s, _ = OPS["lora_shrink"](big, A, 0.0, None)
        close(s[-last:], big[-last:], A.t())
        dS, dB = OPS["lora_ds_db"](big, B, s, 1.0, True, True)
        close(dS[-last:], big[-last:], B)
        close(dB, big[-last:].t(), s[-last:])
        close(OPS["lora_da"](s, big, no_mask, 0.0, BF16), s[-last:].t(), big[-last:])
        y, _ = OPS["lora_linear"](small, W, None, torch.zeros_like(s), B, 1.0, None, False)
        assert y.numel() > 2**31 and not y[:-last].any()
        close(y[-last:], small[-last:], W.t())
        del y
        dX = OPS["lora_dx"](big, W, torch.zeros_like(s), torch.zeros(r, narrow, dtype=BF16), no_mask, 0.0)
        close(dX[-last:], big[-last:], W)
