"""The memory for which a plan says what fits."""

import re
from pathlib import Path

import torch

from ..errors import UserError

MEMINFO = Path("/proc/meminfo")


def room_of(gpu: int | None, cpu: int | None) -> tuple[int, bool, bool]:
    """(bytes, whether they are a GPU's, whether a block can be timed on such a device here).

    gpu, cpu: the bytes that were given; None: not given; 0 for the CPU: what is free on this machine. Without either,
    this machine's GPU if PyTorch has one, else its CPU. UserError if the free memory is not known.
    """
    has_gpu = torch.cuda.is_available()
    if gpu is not None:
        return gpu, True, has_gpu
    if cpu is None and has_gpu:
        return torch.cuda.get_device_properties(0).total_memory, True, True
    return cpu or free_bytes(), False, not has_gpu


def free_bytes() -> int:
    """MemAvailable of Linux. UserError on another system."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", MEMINFO.read_text(), re.MULTILINE) if MEMINFO.is_file() else None
    if found is None:
        raise UserError("the free memory of this machine is not known; give the memory of the device, such as 16GiB")
    return int(found[1]) * 1024
