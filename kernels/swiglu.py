"""h = silu(gate) * up in one launch, computed in float32 and rounded once."""

import triton
import triton.language as tl

from . import _tiles
from ._gemm import load_2d, store_2d


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)), computed with exp(-|x|), which cannot overflow."""
    small = tl.exp(-tl.abs(x))
    return tl.where(x < 0, small, 1.0) / (1.0 + small)


@triton.jit
def _swiglu(
    gate_ptr, up_ptr, h_ptr, M, N, gate_m, gate_n, up_m, up_n, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    across = tl.cdiv(N, BN)
    row = tl.program_id(0) // across * BM + tl.arange(0, BM)
    column = tl.program_id(0) % across * BN + tl.arange(0, BN)
    gate = load_2d(gate_ptr, row, column, gate_m, gate_n, M, N).to(tl.float32)
    up = load_2d(up_ptr, row, column, up_m, up_n, M, N).to(tl.float32)
    store_2d(h_ptr, gate * sigmoid(gate) * up, row, column, N, M, N)


def swiglu(gate, up):
    """gate, up [.., N], any strides -> h [.., N]."""
    h = gate.new_empty(gate.shape)
    if h.numel() == 0:
        return h
    gate, up, out = (t.reshape(-1, t.shape[-1]) for t in (gate, up, h))
    M, N = out.shape

    def launch(config):
        BM, BN = _tiles.shrunk(config.BM, M), _tiles.shrunk(config.BO, N)
        _swiglu[(_tiles.cdiv(M, BM) * _tiles.cdiv(N, BN),)](
            gate, up, out, M, N, *gate.stride(), *up.stride(), BM=BM, BN=BN,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("swiglu", launch, (gate,), (M, N))
    return h
