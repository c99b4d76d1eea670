"""dgate, dup and h of h = silu(gate) * up in one launch, each computed in float32 and rounded once."""

import triton
import triton.language as tl

from . import _tiles
from ._gemm import load_2d, store_2d
from .swiglu import sigmoid


@triton.jit
def _swiglu_backward(
    dh_ptr, gate_ptr, up_ptr, dgate_ptr, dup_ptr, h_ptr, M, N, dh_m, dh_n, gate_m, gate_n, up_m, up_n,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(N, BN)
    row = tl.program_id(0) // across * BM + tl.arange(0, BM)
    column = tl.program_id(0) % across * BN + tl.arange(0, BN)
    dh = load_2d(dh_ptr, row, column, dh_m, dh_n, M, N).to(tl.float32)
    gate = load_2d(gate_ptr, row, column, gate_m, gate_n, M, N).to(tl.float32)
    up = load_2d(up_ptr, row, column, up_m, up_n, M, N).to(tl.float32)
    s = sigmoid(gate)
    # d/dt [t sigmoid(t)] = sigmoid(t) (1 + t sigmoid(-t))
    store_2d(dgate_ptr, dh * up * s * (1.0 + gate * sigmoid(-gate)), row, column, N, M, N)
    store_2d(dup_ptr, dh * gate * s, row, column, N, M, N)
    if h_ptr is not None:
        store_2d(h_ptr, gate * s * up, row, column, N, M, N)


def swiglu_backward(dh, gate, up, need_h):
    """dh, gate, up [.., N], any strides -> dgate, dup, h [.., N], or h [0] if it is not needed."""
    dgate, dup = dh.new_empty(dh.shape), dh.new_empty(dh.shape)
    h = dh.new_empty(dh.shape if need_h else 0)
    if dgate.numel() == 0:
        return dgate, dup, h
    N = dh.shape[-1]
    dh, gate, up = (t.reshape(-1, N) for t in (dh, gate, up))
    M = dh.shape[0]

    def launch(config):
        BM, BN = _tiles.shrunk(config.BM, M), _tiles.shrunk(config.BO, N)
        _swiglu_backward[(_tiles.cdiv(M, BM) * _tiles.cdiv(N, BN),)](
            dh, gate, up, dgate, dup, h if need_h else None, M, N, *dh.stride(), *gate.stride(), *up.stride(),
            BM=BM, BN=BN, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("swiglu_backward", launch, (dh,), (M, N), need_h)
    return dgate, dup, h
