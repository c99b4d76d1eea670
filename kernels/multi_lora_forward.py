"""y_m = W x_m + b + scaling_a B_a A_a drop_a(x_m) for rows of several adapters: s in one launch, y in a second one.

A program of the first launch has rows of one adapter, taken by their numbers. The second launch is lora_linear's: its
tiles have the rows in the batch's order, and each tile begins with the low-rank parts of the adapters in it.
"""

from dataclasses import replace

import triton
import triton.language as tl

from . import _tiles
from ._adapters import COLUMNS, RANK, SCALING, B, adapters
from ._dot import precision
from ._gemm import accumulate, load_row, store_tile, tile_origin
from ._segment_low_rank import by_adapter
from ._segment_shrink import shrink
from ._segments import adapters_of, grouped

FEW_ROWS = 64  # of a decoding batch; a power of two, as the buckets of rows that share a tuning decision
FEW_RANKS = tl.constexpr(4)  # of a step of _by_row


@triton.jit
def _by_row(
    s_ptr, table_ptr, own, row, column, N, R, B_DTYPE: tl.constexpr, ALIGN: tl.constexpr, STEP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """scaling * s B^T, where each row loads the B of its own adapter: for few rows with many adapters."""
    at = table_ptr + tl.maximum(own, 0).to(tl.int64)[:, None, None] * COLUMNS
    r = tl.multiple_of(tl.where(own[:, None, None] < 0, 0, tl.load(at + RANK)).to(tl.int32), (1, 1, STEP))
    b_ptr, b_n, b_r = tl.load(at + B).to(tl.pointer_type(B_DTYPE)), tl.load(at + B + 1), tl.load(at + B + 2)
    if ALIGN > 0:
        b_ptr, b_r = tl.multiple_of(b_ptr, (1, 1, ALIGN)), 1
        b_n = tl.multiple_of(b_n, (1, 1, ALIGN // (B_DTYPE.primitive_bitwidth // 8)))
    acc = tl.zeros((BM, BN), tl.float32)
    for rank0 in range(0, R, FEW_RANKS):
        rank = (rank0 + tl.arange(0, FEW_RANKS))[None, None, :]
        s = tl.load(s_ptr + row.to(tl.int64)[:, None, None] * R + rank, mask=rank < r, other=0.0)
        inside = (column[None, :, None] < N) & (rank < r)
        b = tl.load(b_ptr + column.to(tl.int64)[None, :, None] * b_n + rank * b_r, mask=inside, other=0.0)
        acc += tl.sum(s.to(tl.float32) * b.to(tl.float32), axis=2)
    scaling = tl.load(at + SCALING).to(tl.int32).to(tl.float32, bitcast=True)
    return acc * scaling.reshape(BM, 1)


@triton.jit
def _multi_linear(
    x, w, bias_ptr, s_ptr, table_ptr, index_ptr, y, M, N, K, R, n, x_m, x_k, w_n, w_k, bias_n, index_m,
    BY_ROW: tl.constexpr, B_DTYPE: tl.constexpr, ALIGN: tl.constexpr, STEP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BR: tl.constexpr, GROUP: tl.constexpr,
    TMA: tl.constexpr, W_BY_ROWS: tl.constexpr, SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for tile in range(tl.program_id(0), tl.cdiv(M, BM) * tl.cdiv(N, BN), tl.num_programs(0)):
        m, o = tile_origin(tile, M, N, BM, BN, GROUP)
        row, column = m + tl.arange(0, BM), o + tl.arange(0, BN)
        own = adapters_of(index_ptr, row, index_m, M, n)
        if BY_ROW:
            acc = _by_row(s_ptr, table_ptr, own, row, column, N, R, B_DTYPE, ALIGN, STEP, BM, BN)
        else:
            acc = by_adapter(
                s_ptr, table_ptr, own, row, column, M, N, R, n, B, B_DTYPE, ALIGN, STEP, BM, BN, BR, PRECISION
            )
        if bias_ptr is not None:
            acc += load_row(bias_ptr, column, bias_n, N)
        acc = accumulate(
            acc, x, w, m, o, M, N, K, x_m, x_k, w_k, w_n, None, 0, BM, BN, BK, TMA, W_BY_ROWS, SPECIALIZE, PRECISION
        )
        store_tile(y, acc, m, o, M, N, BM, BN, TMA)


def _linear(x, weight, bias, s, lora_B, adapter_index, known):
    (M, K), N, R, n = x.shape, weight.shape[0], s.shape[1], len(lora_B)
    y, by_row = x.new_empty(M, N), n > 1 and M <= FEW_ROWS
    if y.numel() == 0:
        return y

    def launch(config):
        if by_row:  # fewer columns, so that what a thread loads of B fits into registers
            config = replace(config, BO=min(config.BO, 1024 // _tiles.shrunk(config.BM, M)))
        tile = _tiles.Gemm.fit(config, x, weight.t(), y, R)
        _multi_linear[(tile.programs,)](
            tile.x, tile.w, bias, s, known.table, adapter_index, tile.out, M, N, K, R, n, *x.stride(),
            *weight.stride(), 0 if bias is None else bias.stride(0), adapter_index.stride(0),
            BY_ROW=by_row, B_DTYPE=_tiles.element(lora_B[0].dtype), ALIGN=known.align_B,
            STEP=known.step, BM=tile.BM, BN=tile.BO, BK=tile.BI, BR=tile.BR, GROUP=tile.group, TMA=tile.tma,
            W_BY_ROWS=tile.w_by_rows, SPECIALIZE=tile.specialize,
            PRECISION=precision(x.device, x.dtype, s.dtype, lora_B[0].dtype, rounded_to=x.dtype),
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip

    options = lora_B[0].dtype, weight.stride(1) == 1, known.align_B, known.step
    _tiles.launch("lora_linear, segments", launch, (x,), (M, N, K, R, n), *options)
    return y


def multi_lora_forward(x, weight, bias, lora_A, lora_B, adapter_index, scalings, thresholds, kept, seeds):
    """x [M, K], weight [N, K], bias [N] or None, lora_A n x [r, K], lora_B n x [N, r], adapter_index int64 [M], any
    strides; thresholds and kept: of the dropout, -1 and 1.0 for an adapter without; seeds int64 [n], or None for no
    dropout -> y [M, N], s [M, max r], mask [M, K/8] or [0, K/8]."""
    known = adapters(lora_A, lora_B, scalings, thresholds, kept)
    order, starts = grouped(adapter_index, len(lora_A)) if x.numel() else (None, None)
    s, mask = shrink(x, lora_A, order, starts, known, seeds)
    return _linear(x, weight, bias, s, lora_B, adapter_index, known), s, mask
