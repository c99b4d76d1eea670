"""y = x W^T + b + scaling * s B^T in one launch: s B^T opens the accumulator, the frozen product runs on in it."""

import triton
import triton.language as tl

from . import _tiles
from ._dot import dot, precision
from ._gemm import accumulate, load_2d, store_tile, tile_origin


@triton.jit
def _lora_linear(
    x, w, bias_ptr, s_ptr, b_ptr, y, M, N, K, r, x_m, x_k, w_n, w_k, bias_n, s_m, s_r, b_n, b_r, scaling,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr, W_BY_ROWS: tl.constexpr, SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0)):
        m, n = tile_origin(tile, M, N, BM, BN, GROUP)
        row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), tl.float32)
        for rank0 in tl.range(0, r, BR, num_stages=1):
            rank = rank0 + tl.arange(0, BR)
            s = load_2d(s_ptr, row, rank, s_m, s_r, M, r)
            b = load_2d(b_ptr, rank, column, b_r, b_n, r, N)
            acc = dot(s, b, acc, PRECISION)
        acc *= scaling
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + column.to(tl.int64) * bias_n, mask=column < N, other=0.0)
            acc += bias.to(tl.float32)[None, :]
        acc = accumulate(
            acc, x, w, m, n, M, N, K, x_m, x_k, w_k, w_n, None, 0, BM, BN, BK, TMA, W_BY_ROWS, SPECIALIZE, PRECISION
        )
        store_tile(y, acc, m, n, M, N, BM, BN, TMA)


def lora_linear(x, weight, bias, s, lora_B, scaling):
    """x [M, K], weight [N, K], bias [N] or None, s [M, r], lora_B [N, r], any strides -> y [M, N]."""
    (M, K), (N, r) = x.shape, lora_B.shape
    y = x.new_empty(M, N)
    if y.numel() == 0:
        return y

    def launch(config):
        tile = _tiles.Gemm.fit(config, x, weight.t(), y, r)
        _lora_linear[(tile.programs,)](
            tile.x, tile.w, bias, s, lora_B, tile.out, M, N, K, r, *x.stride(), *weight.stride(),
            0 if bias is None else bias.stride(0), *s.stride(), *lora_B.stride(), scaling,
            BM=tile.BM, BN=tile.BO, BK=tile.BI, BR=tile.BR, GROUP=tile.group, TMA=tile.tma,
            W_BY_ROWS=tile.w_by_rows, SPECIALIZE=tile.specialize,
            PRECISION=precision(x.device, x.dtype, s.dtype, lora_B.dtype, rounded_to=x.dtype),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("lora_linear", launch, (x,), (M, N, K, r))
    return y
