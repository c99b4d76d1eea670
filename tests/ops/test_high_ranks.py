"""High ranks on a CPU: the vendor's library multiplies the adapter's matrices, at once, in blocks and with a mask."""

from itertools import product

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast import _native
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, assert_agrees, sample

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.skipif(_native.missing_cpu() is not None, reason=str(_native.missing_cpu())),
]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [(F32, None), (BF16, None), (BF16, F32), (F16, None)]
NAMES = ["lora_shrink", "lora_linear", "lora_ds_db", "lora_dx", "lora_da", "lora_forward", "lora_backward"]
CASES = [
    *(Case(*size, p, *dtypes) for size, p, dtypes in product([(40, 70, 45, 64), (5, 70, 45, 260)], (0.0, 0.3), DTYPES)),
    *(Case(40, 70, 45, 260, 0.3, *dtypes, layout="strided") for dtypes in DTYPES),
    Case(0, 70, 45, 260, 0.3),
]
# Cases in which the matrix is copied in several blocks of rows or columns.
IN_BLOCKS = [
    ("lora_shrink", Case(40, 8209, 9, 260)),
    ("lora_linear", Case(40, 9, 8209, 260)),
    ("lora_ds_db", Case(40, 9, 8209, 260)),
    ("lora_ds_db", Case(8209, 9, 70, 260)),
    ("lora_dx", Case(40, 8209, 9, 260)),
    ("lora_da", Case(8209, 70, 9, 260)),
]


@pytest.mark.parametrize("op", NAMES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_float64(op, case, poisoned):
    assert_agrees(op, "cpu", case)


@pytest.mark.parametrize("op,case", IN_BLOCKS, ids=str)
@pytest.mark.parametrize("dtypes", [(F32, None), (BF16, None), (BF16, F32)], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_sums_in_several_blocks_agree_with_float64(op, case, dtypes, p, poisoned):
    assert_agrees(op, "cpu", Case(case.M, case.K, case.N, case.r, p, *dtypes))


@pytest.mark.parametrize("M", [5, 40])
@pytest.mark.parametrize("N", [45, 8209])
@pytest.mark.parametrize("dtype,adapter", DTYPES)
def test_a_scaled_product(M, N, dtype, adapter, poisoned):
    assert_agrees("lora_linear", "cpu", Case(M, 33, N, 260, 0.0, dtype, adapter, options={"scale": True}))


@pytest.mark.parametrize("dtype,adapter", DTYPES)
def test_stacked_projections_equal_single_projections(dtype, adapter):
    """Each projection has rows of A, columns of s, a seed and a mask."""
    x, A, *_ = sample("lora_shrink", Case(40, 70, 9, 256, 0.3, dtype, adapter))
    seeds = torch.tensor([3, 4])
    with pf.using("cpu"):
        s, mask = OPS["lora_shrink"](x, A, 0.3, seeds)
        for i in range(2):
            alone, its_mask = OPS["lora_shrink"](x, A[i * 128 : (i + 1) * 128], 0.3, seeds[i : i + 1])
            assert torch.equal(mask[i * 40 : (i + 1) * 40], its_mask)
            torch.testing.assert_close(s[:, i * 128 : (i + 1) * 128], alone)


@pytest.mark.parametrize("op,scaling", [("lora_linear", 5), ("lora_ds_db", 3)])
@pytest.mark.parametrize("dtype,adapter", [(F32, None), (BF16, None), (BF16, F32)])
def test_a_scaling_of_zero_makes_nan_of_infinity(op, scaling, dtype, adapter):
    """BLAS libraries skip a product whose factor is 0, which would lose the NaN."""
    args = list(sample(op, Case(5, 70, 45, 260, 0.0, dtype, adapter)))
    args[scaling] = 0.0
    args[scaling - 1 if op == "lora_linear" else 1][2, 1] = float("inf")
    with pf.using("cpu"):
        y, *_ = OPS[op](*args)
    assert y.isnan().any()


@pytest.mark.parametrize("dtype,adapter", [(F32, None), (BF16, None), (BF16, F32)])
def test_dropped_elements_do_not_enter_the_result(dtype, adapter):
    x, A, p, seed = sample("lora_shrink", Case(40, 70, 9, 260, 0.3, dtype, adapter))
    with pf.using("cpu"):
        s, mask = OPS["lora_shrink"](x, A, p, seed)
        dropped = ((mask[:, 0] & 1) == 0).nonzero().flatten()
        x[dropped, 0] = float("nan")
        again, _ = OPS["lora_shrink"](x, A, p, seed)
    assert len(dropped) and torch.equal(s, again)
