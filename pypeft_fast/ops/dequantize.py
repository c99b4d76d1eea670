"""The weight [N, K] that a quantised one stands for, in one pass over what is stored.

weight, scales: the tensors of a `Frozen` of this format, the first of them and the others -> [N, K] in dtype. Kernels
that multiply with dense weights alone are given this one's result.
"""

from .._op import Op
from ..frozen.operand import Frozen
from . import _check


class _Dequantize(Op):
    def __call__(self, *args):
        if type(args[0]) is Frozen:
            weight, *scales = args[0].tensors
            args = weight, scales, args[0].format, *args[0].shape, args[0].dtype
        return super().__call__(*args)


dequantize = _Dequantize(
    "dequantize(Tensor weight, Tensor[] scales, str format, int N, int K, ScalarType dtype) -> Tensor"
)


def _frozen(weight, scales, format, N, K, dtype):
    return Frozen(format, (weight, *scales), (N, K), dtype)


@dequantize.check
def _(weight, scales, format, N, K, dtype):
    frozen = _frozen(weight, scales, format, N, K, dtype)
    _check.same_device("dequantize", "weight", weight, **dict(zip(frozen.names()[1:], scales, strict=True)))


@dequantize.fake
def _(weight, scales, format, N, K, dtype):
    return weight.new_empty(N, K, dtype=dtype)


@dequantize.flops
def _(weight, scales, format, N, K, dtype):
    return 0


@dequantize.reference
def reference(weight, scales, format, N, K, dtype):
    return _frozen(weight, scales, format, N, K, dtype).dequantize().to(dtype)
