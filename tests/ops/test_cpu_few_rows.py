"""A few rows times a weight on a CPU: rows of a dense one are multiplied with rows or columns as they lie, whole blocks
of a quantised one are decoded in registers, others beforehand."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast.frozen.operand import Frozen
from pypeft_fast.ops.lora_ds_db import lora_ds_db
from pypeft_fast.ops.lora_dx import lora_dx
from pypeft_fast.ops.lora_forward import lora_forward

F32, BF16 = torch.float32, torch.bfloat16
BLOCK = 128  # of fp8, rows and columns


def fp8_scaled(weight, shape):
    """fp8 with random scales of this shape: one for the tensor, or one for each 128 x 128 weights."""
    codes = torch.randint(0, 255, weight.shape, dtype=torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0x2A  # the format's NaN
    return Frozen("fp8", (codes.view(torch.float8_e4m3fn), torch.rand(shape) / 64 + 1 / 64), weight.shape, weight.dtype)


FORMATS = {
    "nf4": lambda w: pf.quantize(w, "nf4"),
    "nf4, 32": lambda w: pf.quantize(w, "nf4", block_size=32),
    "nf4, 16": lambda w: pf.quantize(w, "nf4", block_size=16),
    "fp4, 128, flat": lambda w: pf.quantize(w, "fp4", block_size=128, nested=False),
    "nf4, 4096": lambda w: pf.quantize(w, "nf4", block_size=4096),
    "int8": lambda w: pf.quantize(w, "int8"),
    "fp8": lambda w: pf.quantize(w, "fp8"),
    "fp8, tensor": lambda w: fp8_scaled(w, (1,)),
    "fp8, blocks": lambda w: fp8_scaled(w, (-(-w.shape[0] // BLOCK), -(-w.shape[1] // BLOCK))),
}
# Rows that end within a chunk of 16 blocks, after several, within a block of fp8 and within 32 weights; rows of 5
# blocks, so that the 256 blocks with one scale of nested ones end within a row; and one row of 4096.
SIZES = [(64, 9), (320, 70), (1088, 6), (2176, 5), (160, 130), (4096, 4), (75, 5), (72, 3)]


def of_frozen(weight, x, bias=None):
    """x W^T + bias, as the op computes it beside an adapter of zeros."""
    A, B = torch.zeros(2, x.shape[1], dtype=x.dtype), torch.zeros(weight.shape[0], 2, dtype=x.dtype)
    with pf.using("cpu"), pf.recording() as ran, torch.no_grad():
        y = pf.lora_linear(x, weight, A, B, bias)
    assert ran == [("lora_forward", "cpu")]
    return y


@pytest.mark.parametrize("K,N", SIZES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_agrees_with_float64(format, K, N, dtype, poisoned):
    torch.manual_seed(K + N)
    weight = FORMATS[format](torch.randn(N, K).to(dtype))
    W, bias = weight.dequantize(F32).double(), torch.randn(N).to(dtype)
    for M in (1, 2, 3, 4, 7, 8):
        x = torch.randn(M, K).to(dtype)
        truth = x.double() @ W.t() + bias
        bound = x.double().abs() @ W.abs().t() + bias.abs()
        error = (of_frozen(weight, x, bias).double() - truth).abs()
        limit = 2e-6 * bound + (truth.abs() / 256 if dtype == BF16 else 0)
        assert W.any() and truth.any() and (error <= limit).all(), (M, (error / limit).max())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("K,size", [(64, 1.2e38), (1024, 2e37), (4096, 6e36), (64, 1e-36)])
def test_large_values_stay_finite_where_the_products_with_the_weight_are(format, K, size):
    """Codes reach 127 and 448, and are multiplied with x before their scale."""
    weight = FORMATS[format](torch.full((4, K), 0.01)) if "tensor" not in format else FORMATS["fp8"](torch.ones(4, K))
    for M in (1, 8):
        x = torch.full((M, K), size)
        truth = x.double() @ weight.dequantize(F32).double().t()
        if truth.abs().max() < 3e38:
            torch.testing.assert_close(of_frozen(weight, x).double(), truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("format,scale,value", [("int8", 3.39e38, 1), ("fp8", 7e35, 1.0)])
def test_large_scales_stay_finite(format, scale, value):
    codes = torch.full((5, 64), value, dtype=torch.int8 if format == "int8" else torch.float8_e4m3fn)
    weight = Frozen(format, (codes, torch.full((5,), scale)), (5, 64), F32)
    y = of_frozen(weight, torch.full((2, 64), 1e-3))
    assert y.isfinite().all() and (y / (weight.dequantize(F32)[0, 0] * 0.064) - 1).abs().max() < 1e-5


def test_infinity_and_nan_stay_in_their_row():
    weight, x = FORMATS["int8"](torch.randn(6, 64)), torch.randn(3, 64)
    clean = of_frozen(weight, x)
    x[1, 5], x[2, 7] = torch.inf, torch.nan
    y = of_frozen(weight, x)
    assert torch.equal(y[0], clean[0]) and not y[1:].isfinite().any()


def test_every_byte_of_fp8_has_its_value():
    codes = torch.zeros(256, 32, dtype=torch.uint8)
    codes[torch.arange(256), torch.arange(256) % 32] = torch.arange(256, dtype=torch.uint8)
    weight = Frozen("fp8", (codes.view(torch.float8_e4m3fn), torch.full((256,), 0.5)), (256, 32), F32)
    y = of_frozen(weight, torch.ones(1, 32))
    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float() / 2
    assert expected.isnan().sum() == 2
    torch.testing.assert_close(y[0], expected, rtol=0, atol=0, equal_nan=True)


# Columns and rows of one and of several panels of 48 and groups of 16 panels, and parts of them; more than the 64 or
# 128 rows of the weight that are read at a time, and odd numbers of them.
DENSE = [(1, 40), (48, 64), (96, 128), (32, 129), (33, 97), (130, 100), (1600, 70), (784, 300), (80, 513)]
ROWS = [1, 2, 3, 5, 8, 9, 16, 17, 31, 33, 63, 64, 65]


def compare(got, truth, bound, dtype, parts=0.0):
    """Rounding: of float32 sums, and of the result in its own dtype. `parts`: what is rounded to bfloat16 before, which
    are the vendor's product and the operands of a low-rank part."""
    limit = 4e-6 * bound + ((truth.abs() + parts) / 250 if dtype == BF16 else 0) + 1e-30
    error = (got.double() - truth).abs()
    assert truth.any() and (error <= limit).all(), (got.shape, (error / limit).max())


@pytest.mark.parametrize("K,N", DENSE)
@pytest.mark.parametrize("p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_dx_agrees_with_float64(dtype, p, K, N, poisoned):
    torch.manual_seed(K + N)
    scale = 65536 / (65536 - round(p * 65536))
    for M in ROWS:
        for r in (1, 2, 70):
            dY, W, dS, A = (torch.randn(shape).to(dtype) for shape in ((M, N), (N, K), (M, r), (r, K)))
            keep = torch.rand(M, K) >= p
            low, wide = dS.double() @ A.double() * scale * keep, dS.double().abs() @ A.double().abs() * scale
            base, bound = dY.double() @ W.double(), dY.double().abs() @ W.double().abs()
            with pf.using("cpu"):
                dX = lora_dx(dY, W, dS, A, packed(keep) if p else torch.empty(0, 0, dtype=torch.uint8), p)
            compare(dX, base + low, bound + wide, dtype, base.abs() + wide)


def packed(keep):
    M, K = keep.shape
    bits = torch.nn.functional.pad(keep, (0, -K % 8)).view(M, -1, 8).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


@pytest.mark.parametrize("K,N", DENSE)
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_forward_agrees_with_float64(dtype, K, N, poisoned):
    torch.manual_seed(K + N)
    for M in ROWS:
        for r in (1, 70):
            x, W, A, B, b = (torch.randn(shape).to(dtype) for shape in ((M, K), (N, K), (r, K), (N, r), (N,)))
            with pf.using("cpu"):
                y, s, _ = lora_forward(x, W, b, A, B, 0.5, 0.0, None)
            compare(s, x.double() @ A.double().t(), x.double().abs() @ A.double().abs().t(), dtype)
            low, wide = (s.double() @ B.double().t()) / 2, s.double().abs() @ B.double().abs().t()
            base = x.double() @ W.double().t() + b.double()
            bound = x.double().abs() @ W.double().abs().t() + b.double().abs()
            compare(y, base + low, bound + wide, dtype, base.abs() + wide)


@pytest.mark.parametrize("N,r", [(40, 64), (130, 100), (1100, 256), (97, 65)])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_ds_of_large_ranks_agrees_with_float64(dtype, N, r, poisoned):
    torch.manual_seed(N)
    for M in ROWS:
        dY, B, s = (torch.randn(shape).to(dtype) for shape in ((M, N), (N, r), (M, r)))
        with pf.using("cpu"):
            dS, dB = lora_ds_db(dY, B, s, 1.5, True, True)
        compare(dS, 1.5 * dY.double() @ B.double(), 1.5 * dY.double().abs() @ B.double().abs(), dtype)
        compare(dB, 1.5 * dY.double().t() @ s.double(), 1.5 * dY.double().abs().t() @ s.double().abs(), dtype)


@pytest.mark.parametrize("M", [1, 8, 16, 33, 63])
def test_float32_adapters_over_bfloat16_stay_float32(M, poisoned):
    """Sums that cancel show that neither operand of the low-rank part is rounded to bfloat16."""
    torch.manual_seed(M)
    dY, W, dS, A = torch.zeros(M, 64), torch.zeros(64, 256), torch.randn(M, 8), torch.randn(8, 256)
    with pf.using("cpu"):
        dX = lora_dx(dY.to(BF16), W.to(BF16), dS, A, torch.empty(0, 0, dtype=torch.uint8), 0.0)
    compare(dX, dS.double() @ A.double(), dS.double().abs() @ A.double().abs(), BF16)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("M", [15, 80])
def test_an_infinite_scaling_multiplies_the_sum(M, dtype):
    torch.manual_seed(M)
    dY, B, s = torch.randn(M, 117).to(dtype), torch.randn(117, 300), torch.randn(M, 300)
    with pf.using("cpu"):
        dS, dB = lora_ds_db(dY, B, s, torch.inf, True, True)
    for got, truth in ((dS, dY.double() @ B.double()), (dB, dY.double().t() @ s.double())):
        assert got.isinf().all() and torch.equal(got > 0, truth > 0)
