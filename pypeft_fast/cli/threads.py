"""How many threads PyTorch computes with on the CPU, and whether the machine has room for them."""

import os


def use(number: int | None) -> None:
    """Lets PyTorch, which this imports, compute with so many threads; None leaves its own choice."""
    if number is not None:
        os.environ["OMP_NUM_THREADS"] = str(number)
    import torch

    if number is not None:
        torch.set_num_threads(number)


def crowded(threads: int) -> str | None:
    """A hint if other processes leave too few cores for this many threads, which then wait for each other."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    free = max(1, round(cores - load))
    if threads <= free:
        return None
    return (
        f"this machine is busy (load {load:.1f} on {cores} cores), and {threads} threads that wait for each other are "
        f"slower than fewer that run: try --threads {free}"
    )
