"""Loads csrc's CPU library, if this install has one. Its kernels register themselves on pypeft_fast::<op>_cpu."""

from pathlib import Path

import torch

LIBRARY_PATH = next(iter(sorted(Path(__file__).parent.glob("_C.*so"))), None)
if LIBRARY_PATH is not None:
    torch.ops.load_library(LIBRARY_PATH)


def missing_cpu() -> str | None:
    """None if the C++ kernels for CPUs are there, else why not."""
    if LIBRARY_PATH is None:
        return "pypeft_fast was installed without its C++ library (PYPEFT_FAST_BUILD=none)"
    return None
