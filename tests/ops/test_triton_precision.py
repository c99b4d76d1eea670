"""The precision of float32 products for each architecture, which runs in the interpreter do not show."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from pypeft_fast.kernels import _dot, _tiles  # noqa: E402

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CPU = torch.device("cpu")


@pytest.fixture
def matmul():
    """PyTorch's settings of CUDA matrix products, restored after the test."""
    before = torch.backends.cuda.matmul.fp32_precision
    yield torch.backends.cuda.matmul
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("setting", ["ieee", "tf32"])
@pytest.mark.parametrize("arch", [80, 90, 120, "gfx942", "gfx90a", "gfx1100", "interpreter"])
def test_tf32_is_used_if_allowed_and_supported(arch, setting, matmul, monkeypatch):
    monkeypatch.setattr(_tiles, "architecture", lambda device: arch)
    matmul.fp32_precision = setting
    exists = arch in (80, 90, 120, "gfx942")
    assert _dot.precision(CPU, F32, F32) == ("tf32" if exists and setting == "tf32" else "ieee")


@pytest.mark.parametrize(
    "dtype,rounded_to,expected", [(BF16, F32, "parts"), (F16, F32, "tf32x3"), (BF16, BF16, "tf32")]
)
def test_products_of_two_dtypes_are_as_exact_as_the_result_needs(dtype, rounded_to, expected, matmul, monkeypatch):
    matmul.fp32_precision = "ieee"
    older = "tf32x3" if rounded_to == F32 else "tf32"
    for arch, asked in ((90, expected), (89, older), ("gfx90a", "ieee"), ("gfx942", "ieee")):
        monkeypatch.setattr(_tiles, "architecture", lambda device, arch=arch: arch)
        assert _dot.precision(CPU, dtype, F32, rounded_to=rounded_to) == asked


def test_an_operand_in_parts_has_tiles_of_half_precision():
    assert _tiles.bits_of(90, (BF16, F32)) == 16 == _tiles.bits_of(90, (F16, F16))
    assert (
        _tiles.bits_of("gfx942", (BF16, F32)) == _tiles.bits_of(80, (BF16, F32)) == _tiles.bits_of(90, (F16, F32)) == 32
    )
