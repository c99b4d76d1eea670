"""Loads csrc's libraries, as far as this install has them. Their kernels register themselves on pypeft_fast::<op>_cpu
and pypeft_fast::<op>_cuda."""

import ctypes
import functools
import operator
import struct
from itertools import repeat
from pathlib import Path

import torch


def _built(pattern: str) -> Path | None:
    return next(iter(sorted(Path(__file__).parent.glob(pattern))), None)


def _load(path: Path) -> str | None:
    """Why the library cannot be loaded, or None: it is truncated, or does not fit this machine or this PyTorch."""
    there, least = path.stat().st_size, _least_bytes(path)
    if there < least:  # the system's loader does not check, and crashes
        return f"{path.name} was cut short: it has {there} bytes of at least {least}; install pypeft_fast again"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        reason = error.__cause__ or error  # PyTorch's own error only names the file
        return f"{path.name} does not load under PyTorch {torch.__version__}: {reason}"
    return None


def _least_bytes(path: Path) -> int:
    """The least size of a complete 64-bit ELF file: the end of its section table, which linkers write last; else 0."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
        return 0
    (offset,), (size, count) = struct.unpack_from("<Q", head, 0x28), struct.unpack_from("<HH", head, 0x3A)
    return offset + size * count


LIBRARY_PATH = _built("_C.*so")
_cpu_error = None if LIBRARY_PATH is None else _load(LIBRARY_PATH)

CUDA_LIBRARY_PATH = _built("_C_cuda.*so")
_cuda_error: str | None = None
if CUDA_LIBRARY_PATH is not None and torch.version.cuda is not None:  # else its dependencies are missing
    _cuda_error = _load(CUDA_LIBRARY_PATH)


def missing_cpu() -> str | None:
    """None if the C++ kernels for CPUs are there, else why not."""
    if LIBRARY_PATH is None:
        return (
            f"{Path(__file__).parent} has no C++ library: pypeft_fast was installed with PYPEFT_FAST_BUILD=none, or "
            "this is the folder of a clone, which Python finds first when it starts there; install it again with "
            "PYPEFT_FAST_BUILD=cpu and a C++ compiler, or start Python in another folder"
        )
    return _cpu_error


def not_loaded_cuda() -> str | None:
    """None if the CUDA C++ kernels are there, else why not."""
    if CUDA_LIBRARY_PATH is None:
        return (
            "pypeft_fast was installed without its CUDA library; install it again with PYPEFT_FAST_BUILD=cuda and nvcc"
        )
    if torch.version.cuda is None:
        return f"{CUDA_LIBRARY_PATH.name} needs a PyTorch with CUDA; this one, {torch.__version__}, has none"
    return _cuda_error


def missing_cuda() -> str | None:
    """None if the CUDA C++ kernels are there and a GPU is visible, else why not."""
    return not_loaded_cuda() or (None if torch.cuda.is_available() else "no GPU is visible")


def too_old(device: torch.device) -> str | None:
    """Why the CUDA C++ kernels cannot run on this device: its architecture is older than the oldest one compiled."""
    if device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(device)
    oldest = _oldest_target()
    if 10 * major + minor >= oldest:
        return None
    return f"{device} is sm_{major}{minor} and {CUDA_LIBRARY_PATH.name} was compiled for sm_{oldest} and later"


@functools.cache
def has_kernels_for(gpu: int) -> bool:
    """Whether the CUDA C++ kernels run on the GPU of this index; read once, because each call of an op asks."""
    return too_old(torch.device("cuda", gpu)) is None


@functools.cache
def _oldest_target() -> int:
    return ctypes.CDLL(CUDA_LIBRARY_PATH).pypeft_fast_oldest_target()


def cpu_isa() -> str:
    """The instruction set that the C++ kernels run with: "avx512bf16", "avx512", "avx2" or "baseline".

    It is the best of this CPU, or the one that the environment variable PYPEFT_FAST_CPU named when a kernel first ran.
    RuntimeError if the variable names one that this CPU lacks, or if the library is not there.
    """
    if missing_cpu() is not None:
        raise RuntimeError(missing_cpu())
    from . import _C

    return _C.cpu_isa()


def all_hold_in_python(dicts: list, keys: list, values: list, absent, objects: list, types: list) -> bool:
    """Whether every dicts[i].get(keys[i], absent) is values[i], and every type(objects[i]) is types[i]."""
    found = map(dict.get, dicts, keys, repeat(absent))
    return all(map(operator.is_, found, values)) and all(map(operator.is_, map(type, objects), types))


all_hold = all_hold_in_python
tables = None  # _C, if it has the functions that ops/adapter_table.py calls
if missing_cpu() is None:
    from . import _C

    if hasattr(_C, "table_holds"):  # a library of an earlier build has none
        all_hold, tables = _C.all_hold, _C
