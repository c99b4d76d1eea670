"""The low-rank part of a tile whose rows belong to different adapters, with which the tile's product with W begins."""

import triton
import triton.language as tl

from ._adapters import SCALING, B, load_matrix, load_transposed, matrix, rank_of, real
from ._dot import dot
from ._gemm import load_2d
from ._segments import next_adapter


@triton.jit
def by_adapter(
    s_ptr, table_ptr, own, row, column, M, N, R, n, MATRIX: tl.constexpr, DTYPE: tl.constexpr, ALIGN: tl.constexpr,
    STEP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scaling * s B^T with MATRIX = B, s A with MATRIX = A, by one product for each adapter of the tile. s [M, R];
    N: the columns of the output; own: the adapter of each row of the tile."""
    acc = tl.zeros((BM, BN), tl.float32)
    adapter = next_adapter(own, -1, n)
    while adapter < n:
        r = rank_of(table_ptr, adapter, STEP)
        pointer, of_row, of_column = matrix(table_ptr, adapter, MATRIX, DTYPE, ALIGN)
        its = tl.where(own == adapter, row, M)
        low = tl.zeros((BM, BN), tl.float32)
        for rank0 in tl.range(0, r, BR, num_stages=1):
            rank = rank0 + tl.arange(0, BR)
            s = load_2d(s_ptr, its, rank, R, 1, M, r)
            if MATRIX == B:
                right = load_transposed(pointer, rank, column, of_column, of_row, r, N, ALIGN)
            else:
                right = load_matrix(pointer, rank, column, of_row, of_column, r, N, ALIGN)
            low = dot(s, right, low, PRECISION)
        if MATRIX == B:
            low *= real(table_ptr, adapter, SCALING)
        # Chosen, not added: infinity in this adapter must not reach the other rows of the tile.
        acc = tl.where(own[:, None] == adapter, low, acc)
        adapter = next_adapter(own, adapter, n)
    return acc
