"""float32 adapters beside bfloat16, in three bfloat16 products: float32's precision, and infinity where it belongs."""

import pytest
import torch

pytest.importorskip("triton")

from pypeft_fast import using  # noqa: E402
from pypeft_fast._op import OPS  # noqa: E402

M, K, R = 48, 200, 5
NO_MASK = torch.empty(0, K // 8, dtype=torch.uint8)


def products(x, a, ds):
    """[(what Triton makes of it, its operands)] of each product of a bfloat16 matrix and a float32 one."""
    with using("triton"):
        s, _ = OPS["lora_shrink"](x, a, 0.0, None)
        dA = OPS["lora_da"](ds, x, NO_MASK, 0.0, torch.float32)
        dS, dB = OPS["lora_ds_db"](x, a.t(), ds, 1.0, True, True)
    return [(s, x, a.t()), (dA.t(), x.t(), ds), (dS, x, a.t()), (dB, x.t(), ds)]


def operands():
    return torch.randn(M, K).bfloat16(), torch.randn(R, K), torch.randn(M, R)


def test_no_bit_of_the_adapter_is_lost():
    torch.manual_seed(0)
    for y, left, right in products(*operands()):
        truth = left.double() @ right.double()
        eager = (left.float() @ right - truth).abs().max()
        assert (y - truth).abs().max() <= 2 * eager + truth.abs().max() * 2**-23


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 3.4e38])
@pytest.mark.parametrize("where", range(3), ids=["x", "lora", "ds"])
def test_what_is_not_finite_is_where_pytorch_has_it(where, value):
    given = operands()
    given[0][:, 3], given[0][7] = 1, 0.5  # inf * 1 is infinity, though 1 has nothing in its lower parts
    given[1][:, 3] = given[2][7] = 1
    given[where][7 if where != 1 else 2, 3] = value
    for y, left, right in products(*given):
        torch.testing.assert_close(y, left.float() @ right, rtol=1e-5, atol=1e-4, equal_nan=True)
