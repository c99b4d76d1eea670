"""Decodes a quantised weight to a dense weight [N, K], in one pass over the stored tensors.

weight, scales: the first tensor of a `Frozen` of this format, and its other tensors -> [N, K] in dtype. Kernels that
multiply only dense weights get the result of this op.
"""

import torch

from .._op import Op
from ..frozen import eight_bit, four_bit
from ..frozen.formats import FORMATS
from ..frozen.operand import Frozen
from . import _check, _triton


class _Dequantize(Op):
    def __call__(self, *args):
        if type(args[0]) is Frozen:
            args = _crossing(args[0])
        return super().__call__(*args)

    def beside(self, name: str, weight: Frozen) -> torch.Tensor:
        """The dense weight for a kernel of another op: decoded by this op's kernel of that name, or by the best one."""
        args = _crossing(weight)
        able = [kernel for kernel in self.kernels if kernel.why_not(args) is None]
        return next((kernel for kernel in able if kernel.name == name), able[0]).function(*args)


def _crossing(frozen):
    weight, *scales = frozen.tensors
    return weight, scales, frozen.format, *frozen.shape, frozen.dtype


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
    return _frozen(weight, scales, format, N, K, dtype).dequantize()


def _rejects(weight, scales, format, N, K, dtype):
    if not FORMATS[format].native:
        return f"it cannot read weights of format {format!r}"
    return "float64 runs on the kernel reference only" if dtype == torch.float64 else None


dequantize.native_cpu(_rejects)
dequantize.native_cuda(_rejects)


@dequantize.kernel("triton", ("cuda",), _triton.why_no_triton, _rejects, interpreted=("cpu",))
def _(weight, scales, format, N, K, dtype):
    from ..kernels.dequantize import dequantize

    if format not in four_bit.TABLES:
        return dequantize(weight, scales[0], (N, K), dtype, format, spread=eight_bit.spread(scales[0], (N, K)))
    options = {"table": four_bit.TABLES[format], "per_scale": four_bit.block_size(N * K, scales[0].numel())}
    if len(scales) == 1:
        return dequantize(weight, scales[0], (N, K), dtype, "four_bit", **options)
    absmax, nested_absmax, nested_map, offset = scales
    options["nested"] = absmax, nested_map, offset, four_bit.NESTED_BLOCK
    return dequantize(weight, nested_absmax, (N, K), dtype, "four_bit", **options)
