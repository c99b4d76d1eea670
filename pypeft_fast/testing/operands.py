"""Operands: the random tensors of a case, from which the arguments of every op are taken."""

import torch

from ..frozen.formats import FORMATS
from ..frozen.operand import Frozen
from ..ops import philox
from .case import Case

SCALING = 1.7


def quantized(weight, name):
    """The weight in the format "nf4", "int8", ...; "nf4, 128" means blocks of 128 weights and scales not nested."""
    format, _, block_size = name.partition(", ")
    options = {"block_size": int(block_size), "nested": False} if block_size else {}
    return Frozen(format, FORMATS[format].quantize(weight, **options), tuple(weight.shape), weight.dtype)


class Operands:
    """Tensors on PyTorch's default device, named as in the docstrings of the ops; `draw` is the seed.

    All tensors are drawn in this order for every op, so that a new op does not change the values for other ops.
    """

    def __init__(self, case: Case, draw: int = 0):
        torch.manual_seed(draw)
        self.case = case
        M, K, N, r = self.M, self.K, self.N, self.r = case.M, case.K, case.N, case.r
        self.p, self.scaling, options = case.p, SCALING, case.options
        P = self.adapter_dtype = case.adapter or case.dtype
        S = torch.promote_types(P, case.dtype)
        self.seed = torch.tensor([0x123456789ABCDEF]) if case.p > 0 else None
        self.mask = torch.empty(0, (K + 7) // 8, dtype=torch.uint8)
        if case.p > 0:
            self.mask = philox.packed_mask(M, K, case.p, self.seed)
        self.feedforward = options.get("feedforward", False)
        scaled = K if self.feedforward else N  # the columns that IA3 scales
        self.x, self.dY = self._randn(M, K), self._randn(M, N)
        self.weight, self.bias = self._randn(N, K, transposed=True), self._randn(N) if case.bias else None
        if case.format != "dense":
            self.weight = quantized(self.weight, case.format)
        self.A, self.B = self._randn(r, K, dtype=P), self._randn(N, r, dtype=P)
        self.s, self.dS = self._randn(M, r, dtype=S), self._randn(M, r, dtype=S)
        self.ia3_l, self.saved = self._randn(scaled, dtype=P), self._randn(M, scaled)
        self.gate, self.up = self._randn(M, N), self._randn(M, N)
        self.scale = self._randn(N, dtype=P) if options.get("scale") else None

    def option(self, name: str, default):
        return self.case.options.get(name, default)

    def _randn(self, *shape, dtype=None, transposed=False):
        dtype = dtype or self.case.dtype
        if self.case.layout == "contiguous":
            return torch.randn(shape).to(dtype)
        if transposed:
            return torch.randn(shape[::-1]).to(dtype).t()
        return torch.randn(*shape[:-1], 2 * shape[-1] + 3).to(dtype)[..., 1 : 2 * shape[-1] + 1 : 2]
