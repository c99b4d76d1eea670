"""The products with a quantised weight on CPUs decode every weight: products with the identity give the weight itself.

Blocks of codes that cross rows begin at other columns in each row; with an odd K, codes lie in either half of a byte.
"""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast.ops.lora_dx import lora_dx
from pypeft_fast.ops.lora_forward import lora_forward

FORMATS = [
    *(("nf4", dict(block_size=size, nested=nested)) for size in (16, 32, 64, 4096) for nested in (True, False)),
    ("fp4", {}),
    ("int8", {}),
    ("fp8", {}),
]


def forward(frozen, dtype):
    (N, K), R = frozen.shape, 2
    A, B = torch.zeros(R, K, dtype=dtype), torch.zeros(N, R, dtype=dtype)
    return lora_forward(torch.eye(K, dtype=dtype), frozen, None, A, B, 1.0, 0.0, None)[0].t()


def dX(frozen, dtype):
    (N, K), R = frozen.shape, 2
    dS, A = torch.zeros(N, R, dtype=dtype), torch.zeros(R, K, dtype=dtype)
    return lora_dx(torch.eye(N, dtype=dtype), frozen, dS, A, torch.empty(0, 0, dtype=torch.uint8), 0.0)


@pytest.mark.parametrize("product", [forward, dX])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 48), (70, 96), (48, 160), (33, 95), (65, 64), (16, 131)])
@pytest.mark.parametrize(("format", "options"), FORMATS, ids=lambda value: str(value).strip("{}").replace("'", ""))
def test_the_product_with_the_identity_is_the_weight(product, dtype, shape, format, options):
    torch.manual_seed(0)
    weight = torch.randn(shape) * torch.logspace(-1, 1, shape[0] * shape[1]).view(shape)
    frozen = pf.quantize(weight.to(dtype), format, **options)
    with pf.using("cpu"), pf.recording() as ran:
        found = product(frozen, dtype)
    assert [kernel for _, kernel in ran] == ["cpu"]
    wanted = frozen.dequantize(torch.float32)
    # Nested scales are a sum, whose rounding is that of its larger part.
    options = (
        dict(rtol=1e-6, atol=1e-6 * float(wanted.abs().max())) if dtype == torch.float32 else dict(rtol=2**-8, atol=0)
    )
    torch.testing.assert_close(found, wanted.to(dtype), **options)
