"""CUDA kernels on CPU tensors: csrc/cuda compiled by g++ against a host model of CUDA. README.md tells what it models.

from tests import emulator

with emulator.loaded(), pypeft_fast.using("cuda"):
    pypeft_fast.lora_linear(x, W, A, B)           # tensors on the CPU
with emulator.loaded(), emulator.counting() as counted:
    ...
counted().load.sectors
"""

import contextlib
import ctypes
import dataclasses

import torch

from pypeft_fast._op import OPS

from .build import build

_library: ctypes.CDLL | None = None


class Global(ctypes.Structure):
    """Requests of warps to global memory, in bytes and in sectors of 32 bytes; src/control.h tells each."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("requests", "bytes", "sectors", "needed", "first")]


class Shared(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("requests", "conflicts")]


class Counters(ctypes.Structure):
    _fields_ = [
        ("launches", ctypes.c_uint64),
        ("load", Global),
        ("store", Global),
        ("shared_load", Shared),
        ("shared_store", Shared),
        ("ldmatrix", Shared),
        ("copies", Shared),
    ]


def library() -> ctypes.CDLL:
    """The emulated csrc/cuda, built on first use; its kernels register themselves for CPU tensors as <op>_cuda."""
    global _library
    if _library is None:
        path = build("kernels")
        torch.ops.load_library(path)
        _library = ctypes.CDLL(path)
    return _library


def load() -> None:
    """Makes every op's kernel "cuda" run on CPU tensors when forced, until the process ends."""
    library()
    for op in OPS.values():
        op.kernels[:] = [
            dataclasses.replace(k, interpreted=("cpu",), missing=lambda: None) if k.name == "cuda" else k
            for k in op.kernels
        ]


@contextlib.contextmanager
def loaded():
    """load(), undone at the end."""
    before = {op: list(op.kernels) for op in OPS.values()}
    load()
    try:
        yield
    finally:
        for op, kernels in before.items():
            op.kernels[:] = kernels


def configure(seed: int = 0, counting: bool = False, multiprocessors: int = 4) -> None:
    """Draws another schedule; counts accesses or not (slow); pretends to have that many multiprocessors."""
    library().emulator_configure(seed, counting, multiprocessors)


@contextlib.contextmanager
def capturing():
    """The stream says that a graph is being captured; launches run all the same."""
    library().emulator_capture(True)
    try:
        yield
    finally:
        library().emulator_capture(False)


@contextlib.contextmanager
def full():
    """cudaMalloc finds no memory; PyTorch's allocator goes on."""
    library().emulator_fill(True)
    try:
        yield
    finally:
        library().emulator_fill(False)


@contextlib.contextmanager
def counting(seed: int = 0, multiprocessors: int = 4):
    """Yields a function that returns the Counters of the launches since."""
    lib = library()

    def counted() -> Counters:
        counters = Counters()
        lib.emulator_read_counters(ctypes.byref(counters))
        return counters

    lib.emulator_reset_counters()
    configure(seed, True, multiprocessors)
    try:
        yield counted
    finally:
        configure()
