"""The table of the adapters of a segmented call: addresses, strides, ranks, scalings and dropout, on the device.

The matrices of each adapter stay where they are: a kernel loads their addresses from the adapter's row of the table.
One small launch writes a row, and its arguments are the values. Nothing is copied from the host, so no call waits for
the device, and a CUDA graph contains the values. Later calls with the same values use the same table. A table contains
no element of a weight.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ._gemm import load_2d
from ._reduce import kept_zeros

# The columns of the table. A and B: the address, the stride of the rows and the stride of the columns.
A, B, RANK, SCALING, THRESHOLD, KEPT, COLUMNS = (tl.constexpr(i) for i in (0, 3, 6, 7, 8, 9, 10))
MOST_TABLES = 1024

_tables: OrderedDict[tuple, "Adapters"] = OrderedDict()  # {(stream, values): table}, the latest used last
_captured: dict[int, "Adapters"] = {}  # tables that captured graphs read: kept for the whole process
_lock = threading.Lock()


@dataclass(frozen=True)
class Adapters:
    """table int64 [n, COLUMNS]; align_A, align_B: 0 if some matrix has columns that are not adjacent in memory, else
    the largest power of two up to 16 that divides the address in bytes of every row of these matrices; step: the
    largest power of two up to 16 that divides every rank."""

    table: torch.Tensor
    align_A: int
    align_B: int
    step: int


@triton.jit
def _bits(value):
    """The bits of a float32, as an int64."""
    return tl.cast(value, tl.float32).to(tl.int32, bitcast=True).to(tl.int64)


@triton.jit(do_not_specialize=["row", "a", "a_r", "a_k", "b", "b_n", "b_r", "rank", "threshold"])
def _write_adapter(
    table_ptr, row: tl.int64, a: tl.int64, a_r: tl.int64, a_k: tl.int64, b: tl.int64, b_n: tl.int64, b_r: tl.int64,
    rank: tl.int64, scaling, threshold: tl.int64, kept,
):  # fmt: skip
    table_ptr += row * COLUMNS
    tl.store(table_ptr + A, a)
    tl.store(table_ptr + A + 1, a_r)
    tl.store(table_ptr + A + 2, a_k)
    tl.store(table_ptr + B, b)
    tl.store(table_ptr + B + 1, b_n)
    tl.store(table_ptr + B + 2, b_r)
    tl.store(table_ptr + RANK, rank)
    tl.store(table_ptr + SCALING, _bits(scaling))
    tl.store(table_ptr + THRESHOLD, threshold)
    tl.store(table_ptr + KEPT, _bits(kept))


@triton.jit
def integer(table_ptr, adapter, column: tl.constexpr):
    """A value of the adapter, int64."""
    return tl.load(table_ptr + adapter.to(tl.int64) * COLUMNS + column)


@triton.jit
def rank_of(table_ptr, adapter, STEP: tl.constexpr):
    """The adapter's rank, a multiple of STEP, so that ranks are loaded several at once."""
    return tl.multiple_of(integer(table_ptr, adapter, RANK).to(tl.int32), STEP)


@triton.jit
def real(table_ptr, adapter, column: tl.constexpr):
    """SCALING or KEPT of the adapter, float32."""
    return integer(table_ptr, adapter, column).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def matrix(table_ptr, adapter, at: tl.constexpr, dtype: tl.constexpr, ALIGN: tl.constexpr):
    """(pointer, stride of the rows, stride of the columns) of A or B of the adapter, elements of dtype."""
    pointer = integer(table_ptr, adapter, at).to(tl.pointer_type(dtype))
    row = integer(table_ptr, adapter, at + 1)
    column = integer(table_ptr, adapter, at + 2)
    if ALIGN > 0:
        pointer = tl.multiple_of(pointer, ALIGN)
        row = tl.multiple_of(row, ALIGN // (dtype.primitive_bitwidth // 8))
    return pointer, row, column


@triton.jit
def load_matrix(pointer, row, column, row_stride, column_stride, rows, columns, ALIGN: tl.constexpr):
    """load_2d of A or B, with a column stride of 1 if ALIGN > 0."""
    if ALIGN > 0:
        return load_2d(pointer, row, column, row_stride, 1, rows, columns)
    else:
        return load_2d(pointer, row, column, row_stride, column_stride, rows, columns)


@triton.jit
def load_transposed(pointer, column, row, column_stride, row_stride, columns, rows, ALIGN: tl.constexpr):
    """load_2d of the transpose of A or B, with a column stride of 1 if ALIGN > 0."""
    if ALIGN > 0:
        return load_2d(pointer, column, row, 1, row_stride, columns, rows)
    else:
        return load_2d(pointer, column, row, column_stride, row_stride, columns, rows)


def _align(matrices):
    """ALIGN of these matrices."""
    if any(t.stride(1) != 1 for t in matrices):
        return 0
    bits = 16
    for t in matrices:
        bits |= t.data_ptr() | t.stride(0) * t.element_size()
    return bits & -bits


def _step(lora_A):
    """STEP of these adapters."""
    bits = 16
    for one in lora_A:
        bits |= one.shape[0]
    return bits & -bits


def _written(table, values, lora_A, lora_B):
    for row, its in enumerate(values):
        _write_adapter[(1,)](table, row, *its, num_warps=1)
    return Adapters(table, _align(lora_A), _align(lora_B), _step(lora_A))


def adapters(lora_A, lora_B, scalings, thresholds, kept):
    """The table of n adapters. thresholds, kept: of the dropout, -1 and 1.0 for an adapter without dropout."""
    rows = [
        (one.data_ptr(), *one.stride(), up.data_ptr(), *up.stride(), one.shape[0], *numbers)
        for one, up, *numbers in zip(lora_A, lora_B, scalings, thresholds, kept, strict=True)
    ]
    device, size = lora_A[0].device, (len(rows), COLUMNS.value)
    values = (device, lora_A[0].dtype, lora_B[0].dtype, *rows)
    on_gpu = device.type == "cuda"
    if on_gpu and torch.cuda.is_current_stream_capturing():
        return _in_capture(values, lora_A, lora_B, size)
    stream = torch.cuda.current_stream(device) if on_gpu else None
    key = (stream.cuda_stream if on_gpu else None, values)
    with _lock:
        if key in _tables:
            _tables.move_to_end(key)
            return _tables[key]
    if on_gpu:
        table = kept_zeros(size, torch.int64, device, stream)
        table.record_stream(stream)
    else:
        table = torch.empty(size, dtype=torch.int64)
    made = _written(table, values[3:], lora_A, lora_B)
    with _lock:
        _tables[key] = made
        while len(_tables) > MOST_TABLES:
            _tables.popitem(last=False)
    return made


def _in_capture(values, lora_A, lora_B, size):
    """A table that an earlier call has written, on any stream: torch.cuda.graph synchronises before a capture. Else a
    table in the graph's memory, which the graph writes."""
    with _lock:
        found = next((table for (_, its), table in _tables.items() if its == values), None)
        if found is not None:
            _captured[found.table.data_ptr()] = found
            return found
    table = torch.empty(size, dtype=torch.int64, device=values[0])
    return _written(table, values[3:], lora_A, lora_B)
