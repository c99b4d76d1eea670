"""dX, and dA and dB of every adapter, of rows of several adapters: dS and dB, then dX, then dA, a launch each.

dX is lora_dx's launch: its tiles have the rows in the batch's order, and each tile begins with the masked low-rank
parts of the adapters in it.
"""

import triton
import triton.language as tl

from . import _tiles
from ._adapters import COLUMNS, KEPT, THRESHOLD, A, adapters
from ._dot import precision
from ._gemm import accumulate, store_tile, tile_origin
from ._philox import load_keep
from ._segment_gradients import da, ds_db
from ._segment_low_rank import by_adapter
from ._segments import adapters_of, grouped


@triton.jit
def _of_rows(table_ptr, own, column: tl.constexpr, other):
    """THRESHOLD of each row's adapter, or the bits of KEPT, int32 [BM]; `other` for a row without an adapter."""
    return tl.load(table_ptr + own.to(tl.int64) * COLUMNS + column, mask=own >= 0, other=other).to(tl.int32)


@triton.jit
def _multi_dx(
    dy, w, ds_ptr, table_ptr, index_ptr, mask_ptr, dx, M, N, K, R, n, dy_m, dy_n, w_n, w_k, index_m,
    DROPOUT: tl.constexpr, A_DTYPE: tl.constexpr, ALIGN: tl.constexpr, STEP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr, W_BY_ROWS: tl.constexpr, SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(K, BK), tl.num_programs(0)):
        m, k = tile_origin(tile, M, K, BM, BK, GROUP)
        row, column = m + tl.arange(0, BM), k + tl.arange(0, BK)
        own = adapters_of(index_ptr, row, index_m, M, n)
        acc = by_adapter(
            ds_ptr, table_ptr, own, row, column, M, K, R, n, A, A_DTYPE, ALIGN, STEP, BM, BK, BR, PRECISION
        )
        if DROPOUT:
            drops = _of_rows(table_ptr, own, THRESHOLD, -1) >= 0
            scale = _of_rows(table_ptr, own, KEPT, 0).to(tl.float32, bitcast=True)
            keep = load_keep(mask_ptr, row, k, M, K, BM, BK) | (drops[:, None] == 0)
            acc = tl.where(keep, acc * scale[:, None], 0.0)
        acc = accumulate(
            acc, dy, w, m, k, M, K, N, dy_m, dy_n, w_n, w_k, None, 0, BM, BK, BN, TMA, W_BY_ROWS, SPECIALIZE, PRECISION
        )
        store_tile(dx, acc, m, k, M, K, BM, BK, TMA)


def _dx(dY, weight, dS, mask, lora_A, adapter_index, known):
    (M, N), K, R, n = dY.shape, weight.shape[1], dS.shape[1], len(lora_A)
    dX = dY.new_empty(M, K)
    if dX.numel() == 0:
        return dX

    def launch(config):
        tile = _tiles.Gemm.fit(config, dY, weight, dX, R)
        _multi_dx[(tile.programs,)](
            tile.x, tile.w, dS, known.table, adapter_index, mask, tile.out, M, N, K, R, n, *dY.stride(),
            *weight.stride(), adapter_index.stride(0),
            DROPOUT=mask is not None, A_DTYPE=_tiles.element(lora_A[0].dtype), ALIGN=known.align_A, STEP=known.step,
            BM=tile.BM, BN=tile.BI, BK=tile.BO, BR=tile.BR, GROUP=tile.group, TMA=tile.tma,
            W_BY_ROWS=tile.w_by_rows, SPECIALIZE=tile.specialize,
            PRECISION=precision(dY.device, dY.dtype, dS.dtype, lora_A[0].dtype, rounded_to=dY.dtype),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    options = lora_A[0].dtype, mask is not None, weight.stride(1) == 1, known.align_A, known.step
    _tiles.launch("lora_dx, segments", launch, (dY,), (M, K, N, R, n), *options)
    return dX


def multi_lora_backward(
    dY, x, weight, lora_A, lora_B, adapter_index, s, mask, scalings, thresholds, kept, need_dX, need_dA, need_dB
):
    """dY [M, N], x [M, K] for dA, weight [N, K] for dX, s [M, max r] and mask [M, K/8] (None without dropout) from the
    forward pass, any strides; the other arguments as in the forward pass -> dX [M, K], and lists of the gradients of
    lora_A and of lora_B; [0], or a list of such, for what is not needed."""
    known = adapters(lora_A, lora_B, scalings, thresholds, kept)
    mask = None if mask is None else mask.contiguous()
    order = starts = None
    dX, dA = dY.new_empty(0), [one.new_empty(0) for one in lora_A]
    if dY.shape[0] > 0:
        order, starts = grouped(adapter_index, len(lora_A))
    dS, dB = ds_db(dY, lora_B, s, order, starts, known, need_dX or need_dA, need_dB)
    if need_dX:
        dX = _dx(dY, weight, dS, mask, lora_A, adapter_index, known)
    if need_dA:
        dA = da(dS, x, mask, lora_A, order, starts, known)
    return dX, dA, dB
