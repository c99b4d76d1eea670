"""Interleaved timing: every round runs each step once, in a random order. A slow phase affects all steps, and no step
always finds the caches as the same other step has left them."""

import ctypes
import importlib.metadata
import os
import platform
import random
import statistics
import time
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def interleaved(steps, clock=time.process_time, seconds=2.0, least=4, most=51):
    """{name: median seconds} of the functions in `steps`.

    After one warm-up round, as many rounds run as fit into `seconds`, but at least `least` and at most `most`.
    """
    names, times, order = list(steps), {name: [] for name in steps}, random.Random(0)
    start, rounds = time.perf_counter(), 0
    while rounds < least + 1 or (rounds < most + 1 and time.perf_counter() - start < seconds):
        for name in order.sample(names, len(names)):
            began = clock()
            steps[name]()
            times[name].append(clock() - began)
        rounds += 1
    return {name: statistics.median(its[1:]) for name, its in times.items()}


def interleaved_wall(steps, seconds):
    """`interleaved` by the wall clock, for steps of several threads."""
    return interleaved(steps, time.perf_counter, seconds)


def keep_freed_memory():
    """Makes glibc keep the memory of freed tensors up to 32 MiB. Whether it returns them to the system, and page faults
    bring them back, depends on the order in which tensors lie in its heap, and can take longer than the step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)


def clock_of(threads):
    """CPU time of the process for one thread, since other processes affect it least; wall time for several threads."""
    return time.process_time if threads == 1 else time.perf_counter


def bytes_of(*tensors):
    return sum(t.numel() * t.element_size() for t in tensors)


def flops_of(x, weight, adapters):
    """FLOPs of a forward pass, dX, and the gradients of A and B: six products with the adapter, two with the weight."""
    rows = x.numel() // x.shape[-1]
    return 4 * rows * weight.numel() + 6 * rows * sum(t.numel() for t in adapters if t.dim() == 2)


def machine():
    """The CPU's name, its family and model, which identify AMD's generation, caches, the load, the versions."""
    facts = cpu_facts()
    family, model = facts.get("cpu family"), facts.get("model")
    return {
        "cpu": facts.get("model name", platform.machine()),
        **({"family": int(family), "model": int(model)} if family and model else {}),
        **({"caches": caches()} if caches() else {}),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # the load of other processes, which makes wall times unreliable
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        **versions(),
    }


def versions():
    """{package: version} of the installed packages that the benchmarks compare with."""
    installed = {}
    for package in ("peft", "transformers", "bitsandbytes"):
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def cpu_facts(cpuinfo=Path("/proc/cpuinfo")):
    """The fields of the first CPU in /proc/cpuinfo, {name: value}; empty if there is no such file."""
    first = cpuinfo.read_text().split("\n\n", 1)[0] if cpuinfo.is_file() else ""
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def caches(folder=Path("/sys/devices/system/cpu/cpu0/cache")):
    """The data caches of the first CPU, such as "L1 32K L2 1024K L3 32768K"; empty if Linux lists none."""
    found = []
    for index in sorted(folder.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            found.append(f"L{level} {size}")
    return " ".join(found)
