"""Interleaved timing: every round runs each step once, in another order, so that a slow spell hits all of them."""

import os
import platform
import statistics
import time
from pathlib import Path

import torch


def interleaved(steps, clock=time.process_time, seconds=2.0, least=4, most=51):
    """{name: median seconds} of the functions in `steps`.

    One round warms up; then as many rounds as fit into `seconds`, but from `least` to `most`.
    """
    names, times = list(steps), {name: [] for name in steps}
    start, rounds = time.perf_counter(), 0
    while rounds < least + 1 or (rounds < most + 1 and time.perf_counter() - start < seconds):
        shift = rounds % len(names)
        for name in names[shift:] + names[:shift]:
            began = clock()
            steps[name]()
            times[name].append(clock() - began)
        rounds += 1
    return {name: statistics.median(its[1:]) for name, its in times.items()}


def clock_of(threads):
    """CPU time of the process for one thread, which other programs disturb least; wall time for several."""
    return time.process_time if threads == 1 else time.perf_counter


def bytes_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def flops_of(x, weight, adapters):
    """Of one forward pass, dX, and the gradients of A and B: six products with the adapter, two with the weight."""
    rows = x.numel() // x.shape[-1]
    return 4 * rows * weight.numel() + 6 * rows * sum(t.numel() for t in adapters if t.dim() == 2)


def machine():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # others' work: wall times mean little beside it
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }
