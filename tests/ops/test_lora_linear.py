import dataclasses

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops.lora_linear import lora_linear
from pypeft_fast.testing import CASES, VARIANTS, Case, assert_agrees, available, sample
from tests.ops.rejections import assert_rejects

KERNELS = available(OPS["lora_linear"])
SCALE = VARIANTS["lora_linear, scale"][1]


def scaled(case, **options):
    return dataclasses.replace(case, options=SCALE | options)


@pytest.mark.cpu
@pytest.mark.parametrize("options", [{}, SCALE], ids=str)
@pytest.mark.parametrize("M", [1, 8, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sums_in_cpp_are_no_rougher_than_eager(M, dtype, options):
    assert_agrees("lora_linear", "cpu", Case(M, 11008, 264, 5, 0.0, dtype, options=options))


@pytest.mark.cpu
@pytest.mark.parametrize("op", ["lora_linear", "lora_dx"])
@pytest.mark.parametrize(
    "M,inner,r,p,dtype",
    [
        *((M, 70, 400, p, torch.float32) for M in (60, 72) for p in (0.0, 0.3)),  # from 66 rows on the package's GEMM
        *((M, 1024, r, p, torch.bfloat16) for M in (260, 390) for r in (4, 48) for p in (0.0, 0.3)),  # from 384
    ],
)
def test_agrees_with_the_vendors_product_and_with_the_packages(op, M, inner, r, p, dtype):
    K, N = (inner, 50) if op == "lora_linear" else (50, inner)
    assert_agrees(op, "cpu", Case(M, K, N, r, p, dtype))


@pytest.mark.cpu
@pytest.mark.parametrize("op", ["lora_shrink", "lora_linear", "lora_forward"])
@pytest.mark.parametrize(
    "M,r,dtype",
    [
        *((M, r, torch.float32) for M in (9, 31, 32) for r in (3, 130)),  # up to 31 rows without packing
        *((M, r, torch.bfloat16) for M in (4, 5, 31, 32) for r in (3, 128, 129)),  # of lora_shrink also 31, to r = 128
        *((M, 3, torch.float16) for M in (17, 31)),
    ],
)
def test_agrees_on_both_sides_of_the_rows_that_need_no_packing(op, M, r, dtype):
    assert_agrees(op, "cpu", Case(M, 70, 50, r, 0.0, dtype))


@pytest.mark.parametrize("rows", [1, 9, 31])
@pytest.mark.parametrize("kernel", [k for k in available(OPS["lora_linear"]) if k not in ("triton", "triton+blas")])
def test_an_infinite_scaling_and_a_cancelled_sum_are_those_of_the_formula(rows, kernel):
    x, W, ones = torch.zeros(rows, 8), torch.zeros(5, 8), torch.ones(5, 4)
    s, large = torch.full((rows, 2), 1e38), torch.tensor([[1.0, -1.0]]).repeat(5, 1)
    with pf.using(kernel):
        infinite = OPS["lora_linear"](x, W, None, torch.ones(rows, 4), ones, float("inf"), None, False)[0]
        cancelled = OPS["lora_linear"](x, W, None, s, large, 16.0, None, False)[0]
    assert (infinite == float("inf")).all() and not cancelled.any()


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda x: x[None], ValueError, "x must have 2 dimensions"),
        (1, lambda W: W[:, 1:], ValueError, r"x has shape \(6, 20\), expected \(.., 19\): weight of shape \(10, 19\)"),
        (1, lambda W: W.bfloat16(), TypeError, "weight is torch.bfloat16 but x is torch.float32"),
        (2, lambda b: b[1:], ValueError, r"bias has shape \(9,\), expected \(10,\)"),
        (2, lambda b: b[:1], ValueError, "bias has shape"),  # broadcasting would accept it
        (3, lambda s: s[1:], ValueError, r"s has shape \(5, 3\), expected \(6, 3\)"),
        (4, lambda B: B[:, 1:], ValueError, r"lora_B has shape \(10, 2\), expected \(10, 3\)"),
        (4, lambda B: B.t(), ValueError, "lora_B has shape"),
        (4, lambda B: B.double(), TypeError, "lora_B is torch.float64"),
        (6, torch.ones(9), ValueError, r"scale has shape \(9,\), expected \(10,\)"),
        (6, torch.ones(10, 1), ValueError, r"scale has shape \(10, 1\), expected \(10,\)"),
        (6, torch.ones(1), ValueError, "scale has shape"),
        (6, torch.ones(10).bfloat16(), TypeError, "scale is torch.bfloat16 over a torch.float32 x"),
        (7, True, ValueError, "need_z=True needs a scale, which multiplies z"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("lora_linear", index, value, error, words)


def test_small_example():
    x, weight, bias = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([10.0, 20.0])
    s, B = torch.tensor([[7.0]]), torch.tensor([[1.0], [-1.0]])
    y, z = lora_linear(x, weight, bias, s, B, 2.0, None, False)
    assert y.tolist() == [[11 + 10 + 14, 17 + 20 - 14]] and z.shape == (0, 2)
    scale = torch.tensor([100.0, -2.0])
    y, z = lora_linear(x, weight, bias, s, B, 2.0, scale, True)
    assert y.tolist() == [[100 * (11 + 14) + 10, -2 * (17 - 14) + 20]] and z.tolist() == [[11 + 14, 17 - 14]]
    y, z = lora_linear(x, weight, None, s, B, 2.0, scale, False)
    assert y.tolist() == [[100 * (11 + 14), -2 * (17 - 14)]] and z.shape == (0, 2)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", [scaled(case) for case in CASES], ids=str)
def test_with_a_scale_agrees_with_float64(kernel, case, poisoned):
    assert_agrees("lora_linear", kernel, case)


@pytest.mark.parametrize("dtype,adapter", [(torch.float32, None), (torch.bfloat16, torch.float32)])
@pytest.mark.parametrize("M", [4, 70])
@pytest.mark.parametrize("kernel", KERNELS)
def test_z_is_empty_if_not_needed(kernel, M, dtype, adapter, poisoned):
    assert_agrees("lora_linear", kernel, scaled(Case(M, 33, 45, dtype=dtype, adapter=adapter), need_z=False))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("M", [4, 40])
def test_one_factor_for_all_columns_may_be_expanded(kernel, M):
    args = list(sample("lora_linear", scaled(Case(M, 64, 48, 8))))
    args[6] = torch.tensor([-1.5], device=args[0].device).expand(48)
    with pf.using(kernel):
        expanded = OPS["lora_linear"](*args)
        args[6] = args[6].contiguous()
        torch.testing.assert_close(expanded, OPS["lora_linear"](*args), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kernel", [name for name in KERNELS if "blas" not in name])  # blas rounds before it scales
def test_the_scaled_sum_is_rounded_once_and_the_bias_after_it(kernel, dtype):
    """The sum 1 + eps/4 rounds to z = 1. y = 2**12 (1 + eps/4) - 2**12 is 2**10 eps only if the sum is not rounded."""
    eps = torch.finfo(dtype).eps
    ones = [torch.ones(20, 16).to(dtype) for _ in range(2)]
    x, weight = ones[0] / 16, ones[1]
    s, B = torch.full((20, 1), eps / 4).to(dtype), torch.ones(20, 1).to(dtype)
    bias, scale = torch.full((20,), -(2.0**12)).to(dtype), torch.full((20,), 2.0**12)
    with pf.using(kernel):
        y, z = lora_linear(x, weight, bias, s, B, 1.0, scale, True)
    assert (z == 1).all() and (y == 2**10 * eps).all()


@pytest.mark.parametrize("kernel", available(lora_linear))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("M", [1, 5, 40, 200])
def test_infinity_times_a_scaling_of_0_is_nan(kernel, dtype, M):
    x, weight, bias, s, B, *_ = sample("lora_linear", Case(M, 24, 17, 3, dtype=dtype))
    B[4, 1] = float("inf")
    with pf.using(kernel):
        y, _ = lora_linear(x, weight, bias, s, B, 0.0, None, False)
    assert y[:, 4].isnan().all() and y.isfinite().sum() == y.numel() - M


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_rank_of_zero_is_refused(kernel):
    args = torch.ones(12, 8), torch.ones(5, 8), None, torch.ones(12, 0), torch.ones(5, 0), 1.0, None, False
    with pf.using(kernel), pytest.raises(ValueError, match=r"lora_B has shape \(5, 0\): the rank must be at least 1"):
        lora_linear(*args)


@pytest.mark.parametrize("trailing", [("dense", []), ("dense", None), (None, None)])
def test_the_format_of_a_dense_weight_may_be_given(trailing):
    args = sample("lora_linear", Case())
    assert torch.equal(lora_linear(*args, *trailing)[0], lora_linear(*args)[0])


def test_arguments_of_other_types_are_named():
    args = sample("lora_linear", Case())
    with pytest.raises(
        RuntimeError, match="'Optional\\[Tensor\\]' for argument 'scale' but instead found type 'float'"
    ):
        lora_linear(*args[:6], 2.0, False)
    with pytest.raises(RuntimeError, match=r"lora_linear\(\) is missing value for argument 'need_z'"):
        lora_linear(*args[:7])
