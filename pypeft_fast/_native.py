"""Loads csrc's CPU library, if this install has one. Its kernels register themselves on pypeft_fast::<op>_cpu."""

from pathlib import Path

import torch

LIBRARY_PATH = next(iter(sorted(Path(__file__).parent.glob("_C.*so"))), None)
if LIBRARY_PATH is not None:
    torch.ops.load_library(LIBRARY_PATH)


def missing_cpu() -> str | None:
    """None if the C++ kernels for CPUs are there, else why not."""
    if LIBRARY_PATH is None:
        return (
            "pypeft_fast was installed without its C++ library (PYPEFT_FAST_BUILD=none); install it again with "
            "PYPEFT_FAST_BUILD=cpu and a C++ compiler"
        )
    return None


def cpu_isa() -> str:
    """The instruction set that the C++ kernels run with: "avx512bf16", "avx512", "avx2" or "baseline".

    It is the best of this CPU, or the one that the environment variable PYPEFT_FAST_CPU named when a kernel first ran.
    RuntimeError if the variable names one that this CPU lacks, or if the library is not there.
    """
    if LIBRARY_PATH is None:
        raise RuntimeError(missing_cpu())
    from . import _C

    return _C.cpu_isa()
