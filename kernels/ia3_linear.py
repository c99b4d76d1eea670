"""y = (x W^T + b) * l, or feedforward y = (x * l) W^T + b, in one launch, without a separate pass for the scale."""

import triton
import triton.language as tl

from . import _tiles
from ._dot import precision
from ._gemm import accumulate, load_row, store_tile, tile_origin


@triton.jit
def _ia3_linear(
    x, w, bias_ptr, l_ptr, y, z, M, N, K, x_m, x_k, w_n, w_k, bias_n, l_i,
    FEEDFORWARD: tl.constexpr, NEED_Z: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    GROUP: tl.constexpr, TMA: tl.constexpr, W_BY_ROWS: tl.constexpr, SPECIALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0)):
        m, n = tile_origin(tile, M, N, BM, BN, GROUP)
        column = n + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), tl.float32)
        if bias_ptr is not None:
            acc += load_row(bias_ptr, column, bias_n, N)
        acc = accumulate(
            acc, x, w, m, n, M, N, K, x_m, x_k, w_k, w_n, l_ptr if FEEDFORWARD else None, l_i,
            BM, BN, BK, TMA, W_BY_ROWS, SPECIALIZE, PRECISION,
        )  # fmt: skip
        if NEED_Z:
            store_tile(z, acc, m, n, M, N, BM, BN, TMA)
        if not FEEDFORWARD:
            acc *= load_row(l_ptr, column, l_i, N)
        store_tile(y, acc, m, n, M, N, BM, BN, TMA)


def ia3_linear(x, weight, bias, ia3_l, feedforward, need_z):
    """x [M, K], weight [N, K], bias [N] or None, any strides -> y [M, N], z [M, N] or an empty [0, N]."""
    (M, K), N = x.shape, weight.shape[0]
    need_z = need_z and not feedforward
    y, z = x.new_empty(M, N), x.new_empty(M if need_z else 0, N)
    if y.numel() == 0:
        return y, z

    def launch(config):
        tile = _tiles.Gemm.fit(config, x, weight.t(), y)
        _ia3_linear[(tile.programs,)](
            tile.x, tile.w, bias, ia3_l, tile.out, tile.like_out(z) if need_z else None, M, N, K,
            *x.stride(), *weight.stride(), 0 if bias is None else bias.stride(0), ia3_l.stride(0),
            FEEDFORWARD=feedforward, NEED_Z=need_z, BM=tile.BM, BN=tile.BO, BK=tile.BI, GROUP=tile.group,
            TMA=tile.tma, W_BY_ROWS=tile.w_by_rows, SPECIALIZE=tile.specialize,
            PRECISION=precision(x.device, x.dtype), num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("ia3_linear", launch, (x,), (M, N, K), feedforward, need_z, weight.stride(1) == 1)
    return y, z
