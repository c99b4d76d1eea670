"""The device of the steps: the GPU with full sizes, or in a rehearsal the CPU with tiny sizes."""

import os
import sys

import torch

from ..harness import gpu_timing, timing

REHEARSED = os.environ.get("GPU_HOUR_REHEARSED") == "1"
DEVICE = "cpu" if REHEARSED else "cuda"
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def sized(full, tiny):
    """`full` on a GPU, `tiny` in a rehearsal."""
    return tiny if REHEARSED else full


def prepare():
    """Makes the GPU the default device for new tensors. SystemExit if there is no GPU."""
    if not REHEARSED and not torch.cuda.is_available():
        sys.exit(
            f"bench.gpu_hour needs a GPU, and PyTorch {torch.__version__} sees none: install the driver and a PyTorch "
            "built for it; --rehearse runs every step on the CPU"
        )
    torch.set_default_device(DEVICE)


def interleaved(steps, seconds):
    """{name: median seconds} by GPU events with a cold L2."""
    if REHEARSED:
        return timing.interleaved(steps, seconds=0.0, least=1, most=1)
    return gpu_timing.interleaved(steps, seconds)


def machine():
    return {"gpu": "none, rehearsed"} | timing.machine() if REHEARSED else gpu_timing.machine()


def synchronize():
    if not REHEARSED:
        torch.cuda.synchronize()


def workers(most):
    """Processes that share the CPUs and the GPU."""
    return sized(max(1, min(most, len(os.sched_getaffinity(0)) - 1)), 1)
