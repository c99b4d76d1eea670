"""pf.quantize equals bitsandbytes byte for byte; checks of the tensors of a format; modules of other libraries."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.frozen.formats import FORMATS
from pypeft_fast.testing import available

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
functional = bitsandbytes.functional
SHAPES = [(64, 128), (33, 70), (7, 9), (96, 1024)]  # whole blocks; blocks across rows; an odd number of weights
FOUR_BIT = pytest.mark.parametrize("format", ["nf4", "fp4"])


@FOUR_BIT
@pytest.mark.parametrize("block_size", [32, 64, 256, 4096])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_four_bit_bytes_are_those_of_bitsandbytes(format, block_size, nested, dtype):
    for shape in SHAPES:
        weight = torch.randn(shape).to(dtype)
        codes, state = functional.quantize_4bit(
            weight, blocksize=block_size, compress_statistics=nested, quant_type=format
        )
        frozen = pf.quantize(weight, format, block_size=block_size, nested=nested)
        theirs = [codes, state.absmax]
        if nested:
            theirs += [state.state2.absmax, state.state2.code, state.offset]
        for ours, its in zip(frozen.tensors, theirs, strict=True):
            assert ours.dtype == its.dtype and torch.equal(ours.flatten(), its.flatten())
        if block_size <= shape[1]:  # otherwise bitsandbytes' CPU kernel uses a wrong scale for some rows
            decoded = functional.dequantize_4bit(codes, state)
            torch.testing.assert_close(frozen.dequantize(), decoded, rtol=0 if dtype == torch.float32 else 1e-2, atol=0)


@pytest.mark.parametrize("format", ["nf4", "fp4", "int8", "fp8"])
@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_a_weight_of_any_strides_gives_the_codes_of_its_contiguous_copy(format, layout):
    weight = torch.randn(70, 33).t() if layout == "transposed" else torch.randn(33, 140)[:, ::2]
    found, expected = pf.quantize(weight, format), pf.quantize(weight.contiguous(), format)
    for ours, its in zip(found.tensors, expected.tensors, strict=True):
        assert ours.is_contiguous() and ours.shape == its.shape
        assert torch.equal(ours.flatten().view(torch.uint8), its.flatten().view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int8_bytes_are_those_of_bitsandbytes(dtype):
    weight = torch.randn(33, 70).to(dtype)
    codes, scale, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(weight.half())
    frozen = pf.quantize(weight.half(), "int8")
    assert torch.equal(frozen.tensors[0], codes) and torch.equal(frozen.tensors[1], scale)


@pytest.mark.parametrize("format", ["nf4", "fp4", "int8", "fp8"])
def test_zeros_stay_zeros(format):
    assert torch.equal(pf.quantize(torch.zeros(8, 64), format).dequantize(), torch.zeros(8, 64))


@pytest.mark.parametrize("format", ["nf4", "fp4", "int8", "fp8"])
def test_a_product_over_no_columns_is_the_bias(format):
    frozen, bias = pf.quantize(torch.zeros(8, 0), format), torch.randn(8)
    x = torch.randn(3, 0, requires_grad=True)
    y = pf.ia3_linear(x, frozen, torch.ones(8), bias)
    assert frozen.shape == (8, 0) and torch.equal(frozen.dequantize(), torch.zeros(8, 0))
    assert torch.equal(y, bias.expand(3, 8)) and torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.zeros(3, 0))


@pytest.mark.parametrize("format", ["nf4", "fp4", "int8", "fp8"])
def test_a_product_with_no_rows_is_empty(format):
    frozen = pf.quantize(torch.zeros(0, 64), format)
    assert frozen.shape == (0, 64) and torch.equal(frozen.dequantize(), torch.zeros(0, 64))
    assert torch.equal(pf.ia3_linear(torch.randn(3, 64), frozen, torch.ones(0)), torch.zeros(3, 0))


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_the_gradient_through_no_rows_is_zero(format):
    x = torch.randn(3, 64, requires_grad=True)
    pf.ia3_linear(x, pf.quantize(torch.zeros(0, 64), format), torch.ones(0)).sum().backward()
    assert torch.equal(x.grad, torch.zeros(3, 64))


def test_the_gradient_through_no_rows_of_half_bytes_is_an_error():
    x = torch.randn(3, 64, requires_grad=True)
    y = pf.ia3_linear(x, pf.quantize(torch.zeros(0, 64), "nf4"), torch.ones(0))
    with pytest.raises(ValueError, match="K is unknown for 0 rows in format 'nf4'"):
        y.sum().backward()


@pytest.mark.parametrize("grad", [False, True])
def test_half_bytes_of_one_column_do_not_tell_the_number_of_rows(grad):
    weight = pf.quantize(torch.randn(3, 1), "nf4")
    with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="N is unknown for 1 columns in format 'nf4'"):
        pf.ia3_linear(torch.randn(2, 1), weight, torch.ones(1), feedforward=True)


@pytest.mark.parametrize("format,error", [("nf4", 0.12), ("fp4", 0.2), ("int8", 0.012), ("fp8", 0.035)])
def test_the_error_of_each_format_is_bounded(format, error):
    weight = torch.randn(128, 256)
    assert (pf.quantize(weight, format).dequantize() - weight).norm() / weight.norm() < error


def stored(format, *tensors, shape=(6, 8), dtype=torch.float32):
    return pf.Frozen(format, tensors, shape, dtype)


QUANTIZED = [name for name, its in FORMATS.items() if its.quantize is not None]
W, CODES, ABSMAX = torch.randn(6, 8), *pf.quantize(torch.randn(6, 8), nested=False).tensors


@pytest.mark.parametrize(
    "call,error,words",
    [
        (lambda: pf.quantize(W, "nf5"), ValueError, f"format='nf5'; choose one of {', '.join(QUANTIZED)}$"),
        (lambda: pf.quantize(W, block_size=48), ValueError, "block_size=48; choose one of 16, 32, 64"),
        (lambda: pf.quantize(W[0]), ValueError, r"weight has shape \(8,\), expected \[N, K\]"),
        (lambda: pf.quantize(W.double()), TypeError, "weight is torch.float64"),
        (lambda: stored("nf4", CODES), ValueError, "1 tensors; format 'nf4' has 2: codes, absmax"),
        (lambda: stored("nf4", CODES, ABSMAX, shape=(6, 9)), ValueError, "codes has 24 elements, expected 27"),
        (lambda: stored("nf4", CODES, ABSMAX, dtype=torch.int8), TypeError, "dtype=torch.int8; a quantised"),
        (lambda: stored("nf4", CODES, ABSMAX.half()), TypeError, "absmax is torch.float16"),
        (lambda: stored("nf4", CODES.int(), ABSMAX), TypeError, "codes is torch.int32"),
        (lambda: stored("nf4", CODES, torch.ones(5)), ValueError, "absmax has 5 elements; no block size"),
        (lambda: stored("int8", W, ABSMAX), TypeError, "weight is torch.float32, expected torch.int8"),
        (lambda: stored("int8", W.char(), ABSMAX), ValueError, "scale has 1 elements, expected 6"),
        (lambda: stored("fp8", W.to(torch.float8_e4m3fn), torch.ones(2, 3)), ValueError, r"scale has shape \(2, 3\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_modules_of_bitsandbytes_are_read_as_they_are():
    linear = bitsandbytes.nn.Linear4bit(64, 32, compute_dtype=torch.bfloat16, quant_type="nf4")
    with pytest.raises(TypeError, match=r"frozen_of: Linear4bit: the weight is not quantised yet.*module.to\(device\)"):
        pf.frozen_of(linear)
    frozen = pf.frozen_of(linear.to("cpu"))
    assert frozen.format == "nf4" and frozen.shape == (32, 64) and frozen.dtype == torch.bfloat16
    assert frozen.tensors[0].data_ptr() == linear.weight.data_ptr()
    linear.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(TypeError, match="Linear4bit: bitsandbytes has packed the weight for its own product"):
        pf.frozen_of(linear)
    eight = bitsandbytes.nn.Linear8bitLt(64, 32, has_fp16_weights=False)
    with pytest.raises(TypeError, match="Linear8bitLt: the weight is not quantised yet"):
        pf.frozen_of(eight)
    frozen, x = pf.frozen_of(eight.to("cpu")), torch.randn(3, 64)
    assert frozen.format == "int8" and frozen.tensors[0].data_ptr() == eight.weight.data_ptr()
    torch.testing.assert_close(x @ frozen.dequantize().t() + eight.bias, eight(x))


@pytest.mark.parametrize("block_size", [None, (128, 128)])
def test_fp8_modules_of_transformers(block_size):
    from transformers.integrations.finegrained_fp8 import FP8Linear

    linear, weight = FP8Linear(200, 136, block_size=block_size), torch.randn(136, 200)
    shape = () if block_size is None else (2, 2)
    with torch.no_grad():
        linear.weight.copy_(weight.to(torch.float8_e4m3fn))
        linear.weight_scale_inv.copy_(torch.arange(1.0, 5.0).view(2, 2) if shape else torch.tensor(0.5))
    frozen = pf.frozen_of(linear)
    decoded = frozen.dequantize()
    assert frozen.format == "fp8" and frozen.shape == (136, 200)
    factor = 4 if shape else 0.5  # the scale of the last block
    torch.testing.assert_close(decoded[130:, 130:], weight.to(torch.float8_e4m3fn).float()[130:, 130:] * factor)
    x = torch.randn(5, 200)
    torch.testing.assert_close(pf.ia3_linear(x, frozen, torch.ones(136)), x @ decoded.t(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("rows", [2, 256])  # decoded in vectors, and byte by byte
def test_every_byte_of_eight_bits_is_decoded_right(stored, rows):
    weight = torch.arange(256, dtype=torch.uint8).view(stored).view(rows, -1)
    frozen = pf.Frozen(
        "int8" if stored == torch.int8 else "fp8", (weight, torch.full((rows,), 3.0)), None, torch.float32
    )
    with pf.recording() as ran:
        decoded = OPS["dequantize"](frozen)
    assert ran == [("dequantize", "cpu")]
    torch.testing.assert_close(decoded, frozen.dequantize(), rtol=1e-6, atol=0, equal_nan=True)
    assert decoded.isnan().sum() == (2 if stored == torch.float8_e4m3fn else 0)


@pytest.mark.parametrize("format", ["nf4", "fp4", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(37, 1), (1, 37), (2, 1)])
@pytest.mark.parametrize("kernel", available(OPS["lora_shrink"]))  # lora_linear has all of these, and one more
def test_weights_of_one_row_or_one_column(kernel, format, dtype, shape):
    frozen = pf.quantize(torch.randn(shape).to(dtype), format)
    x = torch.randn(40, shape[1]).to(dtype)
    A, B = torch.randn(2, shape[1]).to(dtype), torch.randn(shape[0], 2).to(dtype)
    expected = pf.lora_linear(x.double(), frozen.dequantize().double(), A.double(), B.double())
    bound = dict(rtol=2e-2, atol=2e-1) if dtype == torch.bfloat16 else dict(rtol=1e-4, atol=1e-4)
    with pf.using(kernel):
        y = pf.lora_linear(x, frozen, A, B)
    torch.testing.assert_close(y.double(), expected, **bound)


@pytest.mark.parametrize("shape", [(200, 100), (200, 128), (130, 1), (2, 300), (1, 300)])
@pytest.mark.parametrize("kernel", available(OPS["ia3_linear"]))
def test_fp8_blocks_of_weights_narrower_than_a_block(kernel, shape):
    N, K = shape
    weight, scale = torch.randn(N, K).to(torch.float8_e4m3fn), torch.rand(-(-N // 128), -(-K // 128)) + 0.5
    frozen = pf.Frozen("fp8", (weight, scale), None, torch.float32)
    spread = scale.repeat_interleave(128, 0)[:N].repeat_interleave(128, 1)[:, :K]
    torch.testing.assert_close(frozen.dequantize(), weight.float() * spread)
    x = torch.randn(40, K)
    with pf.using(kernel):
        y = pf.ia3_linear(x, frozen, torch.ones(N))
    torch.testing.assert_close(y, x @ frozen.dequantize().t(), rtol=1e-4, atol=1e-3)


def test_a_scale_of_the_wrong_shape_is_refused_beside_a_raw_weight():
    weight, dY, saved = torch.ones(17, 17, dtype=torch.int8), torch.ones(64, 17), torch.ones(64, 17)
    with pytest.raises(ValueError, match="scale has 1 elements, expected 17"):
        OPS["ia3_dx_dl"](dY, weight, torch.ones(17), saved, False, True, True, "int8", [torch.ones(1)])


def test_dropout_in_dora_over_one_row_of_half_bytes():
    weight, x = pf.quantize(torch.randn(1, 64), "nf4"), torch.randn(6, 64, requires_grad=True)
    A, B = torch.randn(2, 64), torch.randn(1, 2)
    gradients = []
    for operand in (weight, weight.dequantize()):
        torch.manual_seed(0)
        y = pf.dora_linear(x, operand, A, B, torch.full((1,), 5.0), dropout_p=0.5)
        gradients.append(torch.autograd.grad(y.sum(), x)[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
