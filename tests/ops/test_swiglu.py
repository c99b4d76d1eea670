import pytest
import torch
import torch.nn.functional as F

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops.swiglu import swiglu
from pypeft_fast.testing import available
from tests.ops.rejections import assert_rejects

KERNELS = available(OPS["swiglu"])
# Values at which exp overflows, and near the largest float32.
EDGES = torch.tensor([0.0, -0.0, 20.0, -20.0, 87.5, -87.5, 88.5, -88.5, 103.0, -103.0, 1e30, -1e30, 3e38, -3e38])


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, torch.ones(()), ValueError, "gate must have at least 1 dimension"),
        (0, lambda gate: gate.long(), TypeError, "gate has dtype torch.int64"),
        (1, lambda up: up[1:], ValueError, r"up has shape \(5, 10\), expected \(6, 10\): that of gate"),
        (1, lambda up: up[:, :1], ValueError, r"up has shape \(6, 1\), expected \(6, 10\)"),
        (1, lambda up: up.half(), TypeError, "up is torch.float16 but gate is torch.float32"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("swiglu", index, value, error, words)


@pytest.mark.parametrize("kernel", KERNELS)
def test_small_example(kernel):
    """silu(ln 3) = ln 3 * 3/4, silu(-ln 3) = -ln 3 / 4."""
    t = torch.tensor([3.0]).log()
    with pf.using(kernel):
        h = swiglu(torch.stack([t, -t]), torch.tensor([[4.0], [8.0]]))
    torch.testing.assert_close(h, torch.stack([3 * t, -2 * t]))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(5,), (2, 3, 7), (2, 0, 7), (3, 0), (0,)], ids=str)
def test_any_number_of_dimensions(kernel, shape):
    gate, up = torch.randn(shape), torch.randn(shape)
    with pf.using(kernel):
        torch.testing.assert_close(swiglu(gate, up), F.silu(gate) * up)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("repeats", [1, 3])
def test_far_from_zero_it_is_the_identity_or_zero(kernel, repeats):
    gate = EDGES.repeat(repeats)
    with pf.using(kernel):
        h = swiglu(gate, torch.ones_like(gate))
    torch.testing.assert_close(h.double(), F.silu(gate.double()), rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:invalid value")  # numpy, in Triton's interpreter
def test_nan_stays_nan(kernel, dtype):
    gate = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0, 1.0] * 5, dtype=dtype)
    up = torch.tensor([1.0, 1.0, 1.0, torch.nan, torch.inf] * 5, dtype=dtype)
    with pf.using(kernel):
        torch.testing.assert_close(swiglu(gate, up), F.silu(gate) * up, equal_nan=True)


# The interpreter of Triton truncates to bfloat16.
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k != "triton"])
def test_every_bfloat16(kernel):
    """The result is rounded once: within half a unit in the last place of the float64 value."""
    gate = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    gate = gate[gate.isfinite()].view(1, -1)
    truth = F.silu(gate.double())
    with pf.using(kernel):
        h = swiglu(gate, torch.ones_like(gate)).double()
    torch.testing.assert_close(h, truth, rtol=2**-8 + 1e-6, atol=1e-36)
