"""Rows of several adapters: the rows grouped by adapter, and the table of the adapters' matrices, both on the device.

The rows stay where they are. `grouped` gives `order` int32 [M], the row numbers, adapter by adapter and within an
adapter in the batch's order, and `starts` int32 [n + 2]: group g has order[starts[g] : starts[g + 1]]. Group 0 has the
rows without an adapter, group a + 1 those of adapter a. One launch, without a synchronisation.

A launch over parts of L rows of one group has `slots` programs: part i of group g is slot starts[g] // L + g + i. The
parts of the groups before g need at most starts[g] // L + g slots, so that no two parts share a slot. A slot's group
depends on `starts` alone: no second table, and any L. The slots in between are empty.
"""

import torch
import triton
import triton.language as tl

from . import _tiles

CHUNK = 4096  # rows that a program of _group_rows reads at once


@triton.jit
def adapters_of(index_ptr, row, index_m, M, n):
    """The adapters of these rows, int32; -1 for a row without one, for a row past the end and for a number >= n."""
    adapter = tl.load(index_ptr + row.to(tl.int64) * index_m, mask=row < M, other=-1)
    return tl.where((adapter >= 0) & (adapter < n), adapter, -1).to(tl.int32)


@triton.jit
def next_adapter(adapters, after, n):
    """The smallest number above `after` among the adapters, or n if there is none."""
    return tl.min(tl.where(adapters > after, adapters, n), axis=0)


@triton.jit
def _group_rows(index_ptr, order_ptr, starts_ptr, M, n, index_m, CHUNK: tl.constexpr):
    """Program g writes the rows of group g: it counts the rows of the groups before, then numbers its own."""
    group = tl.program_id(0)
    before = tl.zeros((CHUNK,), tl.int32)
    for first in range(0, M, CHUNK):
        row = first + tl.arange(0, CHUNK)
        of = adapters_of(index_ptr, row, index_m, M, n) + 1
        before += ((of < group) & (row < M)).to(tl.int32)
    start = tl.sum(before, axis=0)
    tl.store(starts_ptr + group, start)
    if group == n:
        tl.store(starts_ptr + n + 1, M)
    for first in range(0, M, CHUNK):
        row = first + tl.arange(0, CHUNK)
        own = (adapters_of(index_ptr, row, index_m, M, n) + 1 == group) & (row < M)
        count = own.to(tl.int32)
        tl.store(order_ptr + start + tl.cumsum(count, axis=0) - 1, row, mask=own)
        start += tl.sum(count, axis=0)


@triton.jit
def part_of(slot, starts_ptr, n, L, GROUPS: tl.constexpr):
    """(adapter or -1, number of the part, first and end of the group's rows in `order`) of a slot."""
    group = tl.arange(0, GROUPS)
    start = tl.load(starts_ptr + group, mask=group <= n, other=0)
    own = tl.sum(((group <= n) & (start // L + group <= slot)).to(tl.int32), axis=0) - 1
    first, end = tl.load(starts_ptr + own), tl.load(starts_ptr + own + 1)
    return own - 1, slot - (first // L + own), first, end


@triton.jit
def first_partial(first, L):
    """The number of the first partial sum of a group with several parts of L rows, whose rows begin at `first`. Such a
    group has at most twice as many parts as whole parts: no two groups share a partial sum."""
    return 2 * (first // L)


@triton.jit
def rows_at(order_ptr, first, end, M, BM: tl.constexpr):
    """The numbers of rows order[first], .. of a part, int64 [BM]; M, which is no row, from `end` on."""
    at = first + tl.arange(0, BM)
    return tl.load(order_ptr + at, mask=at < end, other=M).to(tl.int64)


def groups(n):
    """GROUPS of part_of for n adapters."""
    return triton.next_power_of_2(n + 1)


def slots(M, n, L):
    """The number of slots for parts of L of M rows."""
    return M // L + n + 1


def partials(M, L):
    """The number of partial sums for parts of L of M rows."""
    return 2 * (M // L)


def grouped(adapter_index, n):
    """(order int32 [M], starts int32 [n + 2]) of adapter_index int64 [M], any stride."""
    M = adapter_index.shape[0]
    order = torch.empty(M, dtype=torch.int32, device=adapter_index.device)
    starts = torch.empty(n + 2, dtype=torch.int32, device=adapter_index.device)
    chunk = _tiles.shrunk(CHUNK, M)
    _group_rows[(n + 1,)](
        adapter_index, order, starts, M, n, adapter_index.stride(0), CHUNK=chunk, num_warps=8 if chunk > 1024 else 4
    )
    return order, starts
