"""y = x W^T + b + scaling * s B^T in one launch: the accumulator begins with scaling * s B^T.

With the scale of DoRA the accumulator is stored as z if z is needed, and as y = scale * z + b.
"""

import triton
import triton.language as tl

from . import _tiles
from ._dot import dot, precision
from ._gemm import accumulate, load_2d, load_row, store_tile, tile_origin


@triton.jit
def _lora_linear(
    x, w, bias_ptr, s_ptr, b_ptr, scale_ptr, y, z, M, N, K, r,
    x_m, x_k, w_n, w_k, bias_n, s_m, s_r, b_n, b_r, scale_n, scaling, NEED_Z: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr, W_BY_ROWS: tl.constexpr, SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0)):
        m, n = tile_origin(tile, M, N, BM, BN, GROUP)
        row, column = m + tl.arange(0, BM), n + tl.arange(0, BN)
        acc = tl.zeros((BM, BN), tl.float32)
        if bias_ptr is not None and scale_ptr is None:  # requested with s and B, before the first wait
            bias = load_row(bias_ptr, column, bias_n, N)
        for rank0 in tl.range(0, r, BR, num_stages=1):
            rank = rank0 + tl.arange(0, BR)
            s = load_2d(s_ptr, row, rank, s_m, s_r, M, r)
            b = load_2d(b_ptr, rank, column, b_r, b_n, r, N)
            acc = dot(s, b, acc, PRECISION)
        acc *= scaling
        if bias_ptr is not None and scale_ptr is None:
            acc += bias
        acc = accumulate(
            acc, x, w, m, n, M, N, K, x_m, x_k, w_k, w_n, None, 0, BM, BN, BK, TMA, W_BY_ROWS, SPECIALIZE, PRECISION
        )
        if NEED_Z:
            store_tile(z, acc, m, n, M, N, BM, BN, TMA)
        if scale_ptr is not None:
            acc *= load_row(scale_ptr, column, scale_n, N)
            if bias_ptr is not None:
                acc += load_row(bias_ptr, column, bias_n, N)
        store_tile(y, acc, m, n, M, N, BM, BN, TMA)


def lora_linear(x, weight, bias, s, lora_B, scaling, scale, need_z):
    """x [M, K], weight [N, K], bias [N] or None, s [M, r], lora_B [N, r], scale [N] or None, any strides
    -> y [M, N], z [M, N] or an empty [0, N]."""
    (M, K), (N, r) = x.shape, lora_B.shape
    y, z = x.new_empty(M, N), x.new_empty(M if need_z else 0, N)
    if y.numel() == 0:
        return y, z

    def launch(config):
        tile = _tiles.Gemm.fit(config, x, weight.t(), y, r)
        _lora_linear[(tile.programs,)](
            tile.x, tile.w, bias, s, lora_B, scale, tile.out, tile.like_out(z) if need_z else None, M, N, K, r,
            *x.stride(), *weight.stride(), 0 if bias is None else bias.stride(0), *s.stride(), *lora_B.stride(),
            0 if scale is None else scale.stride(0), scaling,
            NEED_Z=need_z, BM=tile.BM, BN=tile.BO, BK=tile.BI, BR=tile.BR, GROUP=tile.group, TMA=tile.tma,
            W_BY_ROWS=tile.w_by_rows, SPECIALIZE=tile.specialize,
            PRECISION=precision(x.device, x.dtype, s.dtype, lora_B.dtype, rounded_to=x.dtype),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    name = "lora_linear" if scale is None else "lora_linear, scale"
    _tiles.launch(name, launch, (x,), (M, N, K, r), lora_B.dtype, need_z, weight.stride(1) == 1)
    return y, z
