"""The peak memory of this process, and the return of freed memory to the system."""

import ctypes
import re
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far, as the system counts it.

    Linux reports it in VmHWM. getrusage would include the process that started this one.
    """
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE) if STATUS.is_file() else None
    if peak is not None:
        return int(peak[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def give_back_freed() -> None:
    """Returns freed memory to the system, if the C library is glibc, which keeps freed blocks in its heap."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
