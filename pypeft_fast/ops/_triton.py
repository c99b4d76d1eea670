"""Whether Triton kernels can run here."""

import functools
import importlib.util
import os

import torch

from . import _check


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def why_no_triton() -> str | None:
    """None if Triton kernels can run: on a GPU, or on CPU tensors under TRITON_INTERPRET=1."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed: pip install triton"
    if not torch.cuda.is_available() and not _interpreted():
        return "no GPU is visible, and TRITON_INTERPRET=1 (Triton's CPU interpreter) is not set"
    return None


def rejects(first, *args) -> str | None:
    """Why a Triton kernel cannot take these arguments, or None."""
    if first.device.type == "cpu" and not _interpreted():
        return "a CPU tensor needs TRITON_INTERPRET=1 (Triton's CPU interpreter)"
    return _check.no_float64(first, *args)
