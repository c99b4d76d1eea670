"""Times steps on a GPU by events, and describes the machine."""

import statistics
import time

import torch

from .timing import versions

FLUSH_BYTES = 1 << 28  # more than any L2


def interleaved(steps, seconds, least=5, most=51):
    """{name: median seconds on the GPU} of the functions in `steps`, each between two events and with a cold L2.

    After two warm-up rounds, as many rounds run as fit into `seconds`, but at least `least` and at most `most`. Every
    round starts with another step, so that a slow phase of the machine affects all steps.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    names, times = list(steps), {name: [] for name in steps}
    start, rounds = time.perf_counter(), 0
    while rounds < least + 2 or (rounds < most + 2 and time.perf_counter() - start < seconds):
        shift = rounds % len(names)
        for name in names[shift:] + names[:shift]:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            # about 1 ms of cycles, in which the host enqueues the step, so that host time is not measured
            torch.cuda._sleep(2_000_000)
            begin.record()
            steps[name]()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end) / 1e3)
        rounds += 1
    return {name: statistics.median(its[2:]) for name, its in times.items()}


def machine():
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory GiB": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda or f"hip {torch.version.hip}",
        "torch": torch.__version__,
        "triton": triton.__version__,
        **versions(),
    }
