"""How many threads PyTorch computes with on the CPU, how they wait, and whether the machine has room for them."""

import os

# Iterations of GNU OpenMP's spin loop before a thread sleeps. Its default of 300,000 takes milliseconds: on a busy
# machine a thread spins that long at every barrier while the thread that it waits for has no core. This is the value
# that the library itself uses if it has more threads than cores.
SPINS = 1000
HOW_TO_WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def use(number: int | None) -> None:
    """Lets PyTorch, which this imports, compute with so many threads; None leaves its own choice.

    Unless the environment sets how OpenMP's threads wait, they sleep early. Both settings have an effect only before
    PyTorch is imported.
    """
    if not any(name in os.environ for name in HOW_TO_WAIT):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
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
        f"this machine is busy (load {load:.1f} on {cores} cores), and {threads} threads wait for each other there: "
        f"`threads` {free} costs less CPU time and is often as fast"
    )
