"""Quantised weights: values in every format, the choice of the kernel that reads codes, and the traffic of decoding."""

import itertools

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.frozen.operand import Frozen
from pypeft_fast.testing import VARIANTS, Case, assert_agrees, sample
from pypeft_fast.testing.cases import FORMATS
from tests import emulator

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [(F32, None), (BF16, None), (F16, F32)]
PRODUCTS = [title for title, (op, _) in VARIANTS.items() if op in ("lora_linear", "ia3_linear")]
OVER_A_WEIGHT = [*PRODUCTS, "lora_dx", "ia3_dx_dl", "ia3_dx_dl, feedforward"]
# Sides (K, N): whole loads; rows of partial quantisation blocks; an odd number of weights; one weight; many blocks.
SIDES = [(128, 37), (96, 40), (75, 37), (1, 1), (520, 70)]


@pytest.fixture(autouse=True)
def _loaded():
    with emulator.loaded():
        yield
    emulator.configure()


def launches(op, args):
    with pf.using("cuda"), emulator.counting() as counted:
        OPS[op](*args)
    return counted().launches


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_a_weight_is_dequantised_in_one_launch(format, dtype, poisoned):
    for K, N in SIDES:
        case = Case(1, K, N, 1, dtype=dtype, format=format)
        assert_agrees("dequantize", "cuda", case)
        assert launches("dequantize", sample("dequantize", case)) == 1


@pytest.mark.parametrize("by", ["row", "column of rows", "tensor", "block"])
@pytest.mark.parametrize("N,K", [(130, 264), (129, 131), (128, 128), (1, 40)])
def test_every_kind_of_scales_of_fp8(by, N, K):
    blocks = -(-N // 128), -(-K // 128)
    shape = {"row": (N,), "column of rows": (N, 1), "tensor": (), "block": blocks}[by]
    weight = Frozen("fp8", (torch.randn(N, K).to(torch.float8_e4m3fn), torch.rand(shape) + 0.5), (N, K), F32)
    with pf.using("cuda"):
        torch.testing.assert_close(OPS["dequantize"](weight), weight.dequantize(), rtol=0, atol=0)


def test_every_byte_of_eight_bits():
    """The bytes of fp8 include both zeros, the subnormal numbers and NaN."""
    every, scale = torch.arange(256, dtype=torch.uint8).view(1, 256), torch.tensor([2.0])
    for format, dtype in (("int8", torch.int8), ("fp8", torch.float8_e4m3fn)):
        weight = Frozen(format, (every.view(dtype), scale), (1, 256), F32)
        with pf.using("cuda"):
            found = OPS["dequantize"](weight)
        torch.testing.assert_close(found, weight.dequantize(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("format", FORMATS)
def test_codes_that_are_not_aligned(format):
    weight = sample("lora_linear", Case(3, 96, 40, 4, dtype=BF16, format=format))[1]
    codes = weight.tensors[0]
    moved = torch.zeros(codes.numel() + 16, dtype=torch.uint8)
    start = (5 - moved.data_ptr()) % 16
    moved[start : start + codes.numel()] = codes.view(torch.uint8).flatten()
    view = moved[start : start + codes.numel()].view(codes.dtype).view(codes.shape)
    assert view.data_ptr() % 16 == 5
    with pf.using("cuda"):
        found = OPS["dequantize"](Frozen(format.partition(",")[0], (view, *weight.tensors[1:]), weight.shape, BF16))
    torch.testing.assert_close(found, weight.dequantize(), rtol=0, atol=0)


@pytest.mark.parametrize("title", OVER_A_WEIGHT)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype,adapter", DTYPES)
def test_products_agree(title, format, dtype, adapter, poisoned):
    (op, options), p = VARIANTS[title], 0.3 if title == "lora_dx" else 0.0
    for M, (K, N) in itertools.product((1, 11, 40), SIDES[:3]):
        assert_agrees(op, "cuda", Case(M, K, N, 5, p, dtype, adapter, format=format, options=options))


@pytest.mark.parametrize("title", PRODUCTS)
@pytest.mark.parametrize("format", ["nf4", "nf4, 32", "fp4", "fp4, 512"])
def test_few_rows_are_multiplied_with_the_codes(title, format, poisoned):
    """One launch, so no dense weight is stored. Rows are whole loads; long rows are shared by all warps."""
    op, options = VARIANTS[title]
    for M, K, dtypes in itertools.product((1, 16), (96, 2080), DTYPES):
        case = Case(M, K, 24, 5, 0, *dtypes, format=format, options=options)
        assert_agrees(op, "cuda", case)
        assert launches(op, sample(op, case)) == 1


@pytest.mark.parametrize(
    "why,M,K,format",
    [("rows", 17, 96, "nf4"), ("K", 8, 72, "nf4"), ("blocks", 8, 96, "nf4, 16"), ("int8", 8, 96, "int8")],
)
def test_many_rows_are_multiplied_with_the_dequantised_weight(why, M, K, format):
    case = Case(M, K, 24, 5, dtype=BF16, format=format)
    assert_agrees("lora_linear", "cuda", case)
    assert launches("lora_linear", sample("lora_linear", case)) == 2


def test_rows_of_x_that_are_not_aligned_take_the_dequantised_weight():
    x, *more = sample("lora_linear", Case(4, 96, 24, 5, dtype=BF16, format="nf4"))
    wide = torch.zeros(4, 97, dtype=BF16)
    wide[:, 1:] = x
    with pf.using("cuda"):
        expected, moved = OPS["lora_linear"](x, *more)[0], OPS["lora_linear"](wide[:, 1:], *more)[0]
    torch.testing.assert_close(moved, expected)
    assert launches("lora_linear", (wide[:, 1:], *more)) == 2


@pytest.mark.parametrize("title", ["lora_linear", "ia3_linear"])
@pytest.mark.parametrize("format,most", [("nf4", 0.56), ("fp4, 64", 0.60), ("fp4, 512", 0.56)])
def test_decoding_one_row_moves_little_more_than_the_codes(title, format, most):
    """At rank 8, in bytes a weight. Scales of blocks of 64 that are not nested are 1/16 byte a weight."""
    K, N = 1024, 512
    args = sample(title, Case(1, K, N, 8, dtype=BF16, format=format))
    with pf.using("cuda"), emulator.counting() as counted:
        OPS[title](*args)
    c = counted()
    assert 0.5 * K * N < 32 * (c.load.first + c.store.first) <= most * K * N
    assert c.shared_load.conflicts == 0


@pytest.mark.parametrize("format", ["nf4", "fp4, 512", "int8", "fp8"])
def test_dequantising_moves_codes_scales_and_the_weight_once(format):
    case = Case(1, 512, 256, 1, dtype=BF16, format=format)
    args = sample("dequantize", case)
    with pf.using("cuda"), emulator.counting() as counted:
        out = OPS["dequantize"](*args)
    c = counted()
    least = out.nbytes + sum(t.nbytes for t in (args[0], *args[1]))
    unused = 1024  # bytes of the 256 values of nested scales, of which some are not read
    assert least - unused <= 32 * (c.load.first + c.store.first) <= 1.01 * least
    assert c.store.sectors == c.store.needed and c.shared_load.conflicts == c.shared_store.conflicts == 0
