"""The adapters of a case with segments: their number, ranks, scalings, dropout rates, and the adapter of each row."""

import torch

from ..operands import Operands

RATES = (1.0, 0.0, 0.5)  # factors of the case's p; some adapters have no dropout
SIZES = (1.0, 0.5, 2.0, 0.25)  # factors of the case's rank


class Adapters:
    """`o.option("adapters", 5)` adapters with different ranks, scalings, dropout rates and seeds.

    The index is not sorted and contains -1. With several adapters, the last adapter has no rows.
    """

    def __init__(self, o: Operands):
        n = self.n = o.option("adapters", 5)
        self.ranks = [min(64, max(1, int(o.r * SIZES[a % len(SIZES)]))) if a else o.r for a in range(n)]
        self.scalings = [o.scaling * (1 + a % 3) / 2 for a in range(n)]
        self.ps = [o.p * RATES[a % len(RATES)] for a in range(n)]
        self.seeds = torch.arange(n) * 0x9E3779B97F4A7C1 + 0x123456789ABCDEF if o.p > 0 else None
        self.A = [o._randn(r, o.K, dtype=o.adapter_dtype) / o.K**0.5 for r in self.ranks]
        self.B = [o._randn(o.N, r, dtype=o.adapter_dtype) / r**0.5 for r in self.ranks]
        spread = torch.arange(o.M) * 7 % (max(1, n - 1) + 1) - 1
        self.index = spread if n > 1 else (torch.arange(o.M) % 4 > 0).long() - 1
        if o.M == 1:
            self.index = torch.zeros(1, dtype=torch.int64)
