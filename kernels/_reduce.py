"""Deterministic sums over several programs of one launch, by partial sums and a semaphore of tickets.

Every program stores its partial sum in float32 and takes a ticket. The program that takes the last ticket adds all
partial sums in the order of their numbers. The last program varies, but the order does not, so the result is
deterministic. Only the ticket is incremented atomically. The sum needs no second launch.
"""

from concurrent.futures import ThreadPoolExecutor

import torch
import triton
import triton.language as tl

_tickets: dict[tuple[int, int, int], torch.Tensor] = {}


@triton.jit
def last_of(ticket_ptr, programs):
    """Whether this program is the last one that takes this ticket; the last program sets the ticket to 0."""
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
        # .cg loads from L2, which has the stores of the other programs. The L1 of this multiprocessor could be stale.
        total += tl.load(pointers + tl.cast(i, tl.int64) * stride, mask=inside, other=0.0, cache_modifier=".cg")
    return total


def tickets(count, device):
    """int32 [>= count], all 0. A stream has one buffer, because each launch sets its tickets back to 0.

    A captured graph gets its own tickets, which the graph sets to 0, because two graphs that were captured on one
    stream may run concurrently.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device)
    size = max(4096, triton.next_power_of_2(count))  # smaller buffers stay: queued launches may use them
    key = (device.index, stream.cuda_stream, size)
    if key not in _tickets:
        _tickets[key] = kept_zeros(size, torch.int32, device, stream)
    return _tickets[key]


def kept_zeros(size, dtype, device, stream):
    """Zeros that are kept beyond this call, allocated in a thread of their own.

    If the current thread warms up for a CUDA graph of torch.compile, its allocations come from the pool of the graph.
    A tensor that is kept there is an error or is overwritten.
    """
    with ThreadPoolExecutor(1) as other:
        buffer = other.submit(torch.zeros, size, dtype=dtype, device=device).result()
    stream.wait_stream(torch.cuda.default_stream(device))  # the other thread writes the zeros on the default stream
    return buffer
