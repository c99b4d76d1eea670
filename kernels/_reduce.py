"""Sums over programs inside one launch, in an order that never changes: partials, a ticket, and the last one adds.

Every program stores its partial in float32 and takes a ticket. The one that draws the last ticket adds all the
partials, first to last: which program it is varies, the sum does not. The ticket is an integer; no value is added
atomically. Without this, each sum would cost a launch of its own.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl

_tickets: dict[tuple[int, int, int], torch.Tensor] = {}


@triton.jit
def last_of(ticket_ptr, programs):
    """Whether all the other programs that share this ticket have stored their partials. Leaves the ticket at 0."""
    tl.debug_barrier()  # every thread's stores come before the ticket
    last = tl.atomic_add(ticket_ptr, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(ticket_ptr, 0)
    return last


@triton.jit
def add_partials(pointers, inside, partials, stride, BM: tl.constexpr, BN: tl.constexpr):
    """sum over i < partials of *(pointers + i * stride), float32 [BM, BN], in the order of i."""
    total = tl.zeros((BM, BN), tl.float32)
    for i in tl.range(partials, loop_unroll_factor=4):
        # .cg: from L2, where the other programs' stores are; a line in this processor's L1 could be stale.
        total += tl.load(pointers + tl.cast(i, tl.int64) * stride, mask=inside, other=0.0, cache_modifier=".cg")
    return total


def tickets(count, device):
    """int32 [>= count], all zero. One buffer per stream is enough, since each launch leaves it as it was.

    A captured graph gets its own, zeroed in the graph: two graphs of one capture stream may run at the same time.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device)
    size = max(4096, triton.next_power_of_2(count))  # a larger one replaces none: queued launches may still want it
    key = (device.index, stream.cuda_stream, size)
    if key not in _tickets:
        _tickets[key] = _kept(size, device, stream)
    return _tickets[key]


def _kept(size, device, stream):
    """Zeros that stay, allocated in a thread of its own: where this one warms up for torch.compile's CUDA graphs, all
    that it allocates lies in the graph's pool, and whatever stays there is an error or is overwritten."""
    with ThreadPoolExecutor(1) as other:
        buffer = other.submit(torch.zeros, size, dtype=torch.int32, device=device).result()
    stream.wait_stream(torch.cuda.default_stream(device))  # where the other thread's zeros are written
    return buffer
