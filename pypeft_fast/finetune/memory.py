"""Measures the memory of this process."""

import re
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far, in bytes.

    On Linux the value is VmHWM of /proc/self/status; getrusage would include the peak of the parent process.
    """
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE) if STATUS.is_file() else None
    if peak is not None:
        return int(peak[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """The resident set of this process now, in bytes; its largest so far where there is no /proc."""
    now = re.search(r"^VmRSS:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE) if STATUS.is_file() else None
    return peak_memory_bytes() if now is None else int(now[1]) * 1024
