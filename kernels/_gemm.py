"""The frozen matrix product inside lora_linear, lora_dx and the IA3 kernels: out [M, O] = x [M, I] @ w [I, O].

The grid is persistent: there are at most as many programs as multiprocessors, and each program computes several output
tiles, in an order that keeps x and w in L2. With TMA, x, w and the output are tensor descriptors, otherwise pointers
with strides. The loads of `w` are contiguous along the contiguous axis of `w`.
"""

import triton
import triton.language as tl

from ._dot import dot


@triton.jit
def tile_origin(tile, M, O, BM: tl.constexpr, BO: tl.constexpr, GROUP: tl.constexpr):
    """(m, o), the first row and column of a tile. Tiles go down in groups of GROUP rows, then right."""
    down, across = tl.cdiv(M, BM), tl.cdiv(O, BO)
    group = tile // (GROUP * across)
    height = min(down - group * GROUP, GROUP)
    inside = tile - group * GROUP * across
    return (group * GROUP + inside % height) * BM, (inside // height) * BO


@triton.jit
def load_2d(base, row, column, row_stride, column_stride, rows, columns):
    """The tile at these row and column numbers; elements outside are 0. Offsets have 64 bits."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    offset = row[:, None].to(tl.int64) * row_stride + column[None, :].to(tl.int64) * column_stride
    return tl.load(base + offset, mask=inside, other=0.0)


@triton.jit
def load_row(base, column, stride, columns):
    """The elements of a vector at these column numbers, as a row in float32; elements outside are 0."""
    values = tl.load(base + column.to(tl.int64) * stride, mask=column < columns, other=0.0)
    return values.to(tl.float32)[None, :]


@triton.jit
def store_2d(base, value, row, column, row_stride, rows, columns):
    """Stores a tile into a row-major matrix, cast to the dtype of the matrix."""
    inside = (row[:, None] < rows) & (column[None, :] < columns)
    offset = row[:, None].to(tl.int64) * row_stride + column[None, :]
    tl.store(base + offset, value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _scaled(x, scale_ptr, scale_i, i, I, BI: tl.constexpr):
    """x * scale along the inner axis, computed in float32 and rounded once; x itself if scale_ptr is None."""
    if scale_ptr is None:
        return x
    else:
        inner = i + tl.arange(0, BI)
        scale = tl.load(scale_ptr + inner.to(tl.int64) * scale_i, mask=inner < I, other=0.0)
        return (x.to(tl.float32) * scale.to(tl.float32)[None, :]).to(x.dtype)


@triton.jit
def accumulate(
    acc, x, w, m, o, M, O, I, x_m, x_i, w_i, w_o, scale_ptr, scale_i,
    BM: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, TMA: tl.constexpr, W_BY_ROWS: tl.constexpr,
    SPECIALIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + (x * scale)[m : m+BM] @ w[:, o : o+BO]; scale [I] or None.

    W_BY_ROWS: w is contiguous along O. The tensor descriptor of w is then [I, O], otherwise [O, I].
    """
    if TMA:
        for i in tl.range(0, I, BI, warp_specialize=SPECIALIZE):
            x_block = _scaled(x.load([m, i]), scale_ptr, scale_i, i, I, BI)
            if W_BY_ROWS:
                acc = dot(x_block, w.load([i, o]), acc, PRECISION)
            else:
                acc = dot(x_block, w.load([o, i]).T, acc, PRECISION)
    else:
        row, column, inner = m + tl.arange(0, BM), o + tl.arange(0, BO), tl.arange(0, BI)
        # Rows past the end of x are replaced by the last row, so that no mask is needed; their results are not stored.
        # Columns past the end of w are replaced in the same way, unless the columns are contiguous: a repeated column
        # would then prevent loads of 16 bytes.
        row, inside = tl.minimum(row, M - 1).to(tl.int64), column < O
        column = column.to(tl.int64) if W_BY_ROWS else tl.minimum(column, O - 1).to(tl.int64)
        x_tile = x + row[:, None] * x_m + inner[None, :].to(tl.int64) * x_i
        w_tile = w + inner[:, None].to(tl.int64) * w_i + column[None, :] * w_o
        for i in range(0, I, BI):
            step = tl.cast(i, tl.int64)
            x_block = tl.load(x_tile + step * x_i, mask=inner[None, :] < I - i, other=0.0)
            if W_BY_ROWS:
                w_block = tl.load(w_tile + step * w_i, mask=(inner[:, None] < I - i) & inside[None, :], other=0.0)
            else:
                w_block = tl.load(w_tile + step * w_i, mask=inner[:, None] < I - i, other=0.0)
            acc = dot(_scaled(x_block, scale_ptr, scale_i, i, I, BI), w_block, acc, PRECISION)
    return acc


@triton.jit
def store_tile(out, value, m, o, M, O, BM: tl.constexpr, BO: tl.constexpr, TMA: tl.constexpr):
    """Stores an output tile, cast to the dtype of the output."""
    if TMA:
        out.store([m, o], value.to(out.dtype))
    else:
        store_2d(out, value, m + tl.arange(0, BM), o + tl.arange(0, BO), O, M, O)
