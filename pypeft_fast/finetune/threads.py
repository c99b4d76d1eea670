"""Sets the number of PyTorch's CPU threads and how the threads wait, and checks that enough cores are free."""

import os

# Iterations of GNU OpenMP's spin loop before a thread sleeps. The default of 300,000 takes milliseconds: on a busy
# machine a thread spins that long at every barrier while another thread, for which it waits, has no core. GNU OpenMP
# itself uses 1000 if there are more threads than cores.
SPINS = 1000
HOW_TO_WAIT = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def use(number: int | None) -> None:
    """Imports PyTorch and sets its number of threads; None keeps PyTorch's default number.

    Threads sleep early, unless the environment sets how OpenMP's threads wait. Call this function before PyTorch is
    imported elsewhere: later the environment variables have no effect.
    """
    if not any(name in os.environ for name in HOW_TO_WAIT):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    if number is not None:
        os.environ["OMP_NUM_THREADS"] = str(number)
    import torch

    if number is not None:
        torch.set_num_threads(number)


def why_oversubscribed(threads: int) -> str | None:
    """A hint for the user if fewer cores are free than `threads`, so that threads wait for each other; else None."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    free = max(1, round(cores - load))
    if threads <= free:
        return None
    return (
        f"this machine is busy (load {load:.1f} on {cores} cores), and {threads} threads wait for each other there: "
        f"`threads` {free} costs less CPU time and is often as fast"
    )
