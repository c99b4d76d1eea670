"""Memory between and after the rows of an operand must not enter a result, not even multiplied by 0."""

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.testing import Case, available, cut, sample

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
KERNELS = [(name, k) for name, op in OPS.items() for k in available(op) if k not in ("reference", "blas")]
# Odd sizes, with numbers of rows for each of the package's few-rows product, the vendor's and the package's product.
FEW = [Case(3, 33, 49, 3, 0.0, BF16), Case(21, 33, 49, 3, 0.3, F16, F32)]
MANY = [Case(40, 33, 49, 3, 0.3, F32), Case(200, 33, 49, 3, 0.3, BF16), Case(200, 33, 49, 3, 0.0, BF16, F32)]
CALLS = [
    (*kernel, case) for kernel in KERNELS if kernel[0] != "dequantize" for case in FEW + MANY * (kernel[1] != "triton")
]


def _behind(tensor):
    """A copy of the tensor at the beginning of a storage, with as many bad elements after it."""
    wide = tensor.new_full((2 * max(1, tensor.shape[0]), *tensor.shape[1:]), _bad(tensor))
    return wide[: tensor.shape[0]].copy_(tensor)


def _between(tensor):
    """A copy of the tensor with bad elements before and after each row, or between the elements of a vector."""
    if tensor.dim() < 2:
        wide = tensor.new_full((tensor.shape[0], 3), _bad(tensor))
        return wide[:, 0].copy_(tensor)
    wide = tensor.new_full((tensor.shape[0] + 1, tensor.shape[1] + 5), _bad(tensor))
    return wide[: tensor.shape[0], 2:-3].copy_(tensor)


def _across(tensor):
    """A copy of the tensor with bad elements before and after each column."""
    return _between(tensor.t()).t() if tensor.dim() == 2 else tensor


def _bad(tensor):
    return float("nan") if tensor.is_floating_point() else 255


@pytest.mark.parametrize("op,kernel,case", CALLS, ids=str)
def test_memory_around_an_operand_does_not_enter_a_result(op, kernel, case):
    args, eps = sample(op, cut(op, kernel, case)), torch.finfo(case.dtype).eps
    with pf.using(kernel):
        expected = OPS[op](*args)
        for where in (_behind, _between, _across):
            around = [where(a) if isinstance(a, torch.Tensor) and a.dtype != torch.int64 else a for a in args]
            torch.testing.assert_close(OPS[op](*around), expected, rtol=4 * eps, atol=64 * eps)


@pytest.mark.parametrize("kernel", [kernel for op, kernel in KERNELS if op == "dequantize"])
@pytest.mark.parametrize("format", ["nf4", "nf4, 32", "int8", "fp8"])
def test_memory_after_a_quantised_weight_does_not_enter_a_result(kernel, format):
    """The tensors of a quantised weight must be contiguous; others are refused."""
    codes, scales, *rest = sample("dequantize", Case(3, 33, 49, 3, format=format))
    with pf.using(kernel):
        expected = OPS["dequantize"](codes, scales, *rest)
        behind = [_behind(scale) if scale.dim() else scale for scale in scales]
        assert torch.equal(
            OPS["dequantize"](_behind(codes.view(torch.uint8)).view(codes.dtype), behind, *rest), expected
        )
        with pytest.raises(ValueError, match="has gaps"):
            OPS["dequantize"](codes, [torch.stack((scales[0],) * 2, -1)[..., 0], *scales[1:]], *rest)
