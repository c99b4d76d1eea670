import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops.dora_norm import dora_norm
from pypeft_fast.testing import Case, available, sample
from tests.ops.rejections import assert_rejects

FORMED = [kernel for kernel in available(OPS["dora_norm"]) if kernel != "blas"]  # blas sums squares instead
DTYPES = [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)]


@pytest.mark.parametrize(
    "index,value,error,words",
    [
        (0, lambda W: W[0], ValueError, "weight must have 2 dimensions"),
        (1, lambda A: A[:, 1:], ValueError, r"lora_A has shape \(3, 19\), expected \(3, 20\)"),
        (1, lambda A: A[:0], ValueError, "the rank must be at least 1"),
        (2, lambda B: B[1:], ValueError, r"lora_B has shape \(9, 3\), expected \(10, 3\)"),
        (1, lambda A: A.half(), TypeError, "lora_A is torch.float16 over a torch.float32 weight"),
        (2, lambda B: B.half(), TypeError, "lora_B is torch.float16 but lora_A is torch.float32"),
    ],
)
def test_rejects(index, value, error, words):
    assert_rejects("dora_norm", index, value, error, words)


def test_small_example():
    W, A, B = torch.tensor([[3.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0], [3.0]])
    assert dora_norm(W, A, B, 2.0).tolist() == [5.0, 6.0]


@pytest.mark.parametrize("kernel", FORMED)
@pytest.mark.parametrize("dtype,adapter", [(torch.float32, None), (torch.bfloat16, torch.float32)])
def test_an_update_that_cancels_the_weight_leaves_an_exact_length(kernel, dtype, adapter):
    _, A, B, scaling = sample("dora_norm", Case(N=40, K=70, r=5, dtype=dtype, adapter=adapter))
    W = (-scaling * (B.double() @ A.double()) * (1 + 1e-4)).to(dtype)
    truth = torch.linalg.vector_norm(W.double() + scaling * (B.double() @ A.double()), dim=1)
    with pf.using(kernel):
        torch.testing.assert_close(dora_norm(W, A, B, scaling).double(), truth, rtol=2e-2, atol=0)


@pytest.mark.parametrize("kernel", available(OPS["dora_norm"]))
@pytest.mark.parametrize(
    "dtype,adapter", [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)]
)
def test_more_rows_than_a_block_holds(kernel, dtype, adapter):
    """With 8209 columns a block has 32 rows."""
    args = sample("dora_norm", Case(N=70, K=8209, r=3, dtype=dtype, adapter=adapter))
    truth = OPS["dora_norm"].function("reference")(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    with pf.using(kernel):
        torch.testing.assert_close(
            dora_norm(*args).double(), truth, rtol=1e-5 if dtype == torch.float32 else 2e-3, atol=0
        )


@pytest.mark.parametrize("kernel", FORMED)
def test_nan_and_infinity_stay_in_their_rows(kernel):
    W, A, B, scaling = sample("dora_norm", Case())
    B[2], W[5, 1] = float("nan"), float("inf")
    with pf.using(kernel):
        norm = dora_norm(W, A, B, scaling)
    assert norm.isnan().nonzero().flatten().tolist() == [2] and norm.isinf().nonzero().flatten().tolist() == [5]
