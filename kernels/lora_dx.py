"""dX = dY W + keep * (dS A) * scale in one launch: the accumulator begins with the masked low-rank term."""

import triton
import triton.language as tl

from . import _tiles
from ._dot import dot, precision
from ._gemm import accumulate, load_2d, store_tile, tile_origin
from ._philox import load_packed, unpacked


@triton.jit
def _lora_dx(
    dy, w, ds_ptr, a_ptr, mask_ptr, dx, M, N, K, r, dy_m, dy_n, w_n, w_k, ds_m, ds_r, a_r, a_k, scale,
    DROPOUT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr,
    GROUP: tl.constexpr, TMA: tl.constexpr, W_BY_ROWS: tl.constexpr, SPECIALIZE: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(K, BK), tl.num_programs(0)):
        m, k = tile_origin(tile, M, K, BM, BK, GROUP)
        row, column = m + tl.arange(0, BM), k + tl.arange(0, BK)
        acc = tl.zeros((BM, BK), tl.float32)
        if DROPOUT:  # requested with dS and A, before the first wait
            packed = load_packed(mask_ptr, row, k, M, K, BK)
        for rank0 in tl.range(0, r, BR, num_stages=1):
            rank = rank0 + tl.arange(0, BR)
            ds = load_2d(ds_ptr, row, rank, ds_m, ds_r, M, r)
            a = load_2d(a_ptr, rank, column, a_r, a_k, r, K)
            acc = dot(ds, a, acc, PRECISION)
        if DROPOUT:
            acc = tl.where(unpacked(packed, BM, BK), acc * scale, 0.0)
        acc = accumulate(
            acc, dy, w, m, k, M, K, N, dy_m, dy_n, w_n, w_k, None, 0, BM, BK, BN, TMA, W_BY_ROWS, SPECIALIZE, PRECISION
        )
        store_tile(dx, acc, m, k, M, K, BM, BK, TMA)


def lora_dx(dY, weight, dS, lora_A, mask, scale):
    """dY [M, N], weight [N, K], dS [M, r], lora_A [r, K], any strides; scale None for no dropout -> dX [M, K]."""
    (M, N), (r, K) = dY.shape, lora_A.shape
    dX = dY.new_empty(M, K)
    if dX.numel() == 0:
        return dX
    mask = mask.contiguous()

    def launch(config):
        tile = _tiles.Gemm.fit(config, dY, weight, dX, r)
        _lora_dx[(tile.programs,)](
            tile.x, tile.w, dS, lora_A, mask, tile.out, M, N, K, r, *dY.stride(), *weight.stride(), *dS.stride(),
            *lora_A.stride(), 1.0 if scale is None else scale,
            DROPOUT=scale is not None, BM=tile.BM, BN=tile.BI, BK=tile.BO, BR=tile.BR, GROUP=tile.group,
            TMA=tile.tma, W_BY_ROWS=tile.w_by_rows, SPECIALIZE=tile.specialize,
            PRECISION=precision(dY.device, dY.dtype, dS.dtype, lora_A.dtype, rounded_to=dY.dtype),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    _tiles.launch("lora_dx", launch, (dY,), (M, K, N, r), lora_A.dtype, scale is not None, weight.stride(1) == 1)
    return dX
