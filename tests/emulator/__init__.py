"""CUDA kernels on CPU tensors: csrc/cuda compiled by g++ against a host model of CUDA. README.md describes the model.

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
    """Requests of warps to global memory, in bytes and in sectors of 32 bytes; src/control.h describes each field."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("requests", "bytes", "sectors", "needed", "first")]


class Shared(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("requests", "conflicts")]


class Counters(ctypes.Structure):
    _fields_ = [
        ("launches", ctypes.c_uint64),
        ("overlapping", ctypes.c_uint64),
        ("load", Global),
        ("store", Global),
        ("shared_load", Shared),
        ("shared_store", Shared),
        ("ldmatrix", Shared),
        ("copies", Shared),
    ]


def library() -> ctypes.CDLL:
    """The emulated csrc/cuda, built on first use. Its kernels are registered for CPU tensors as <op>_cuda."""
    global _library
    if _library is None:
        path = build("kernels")
        torch.ops.load_library(path)
        _library = ctypes.CDLL(path)
    return _library


def load() -> None:
    """Makes the kernel "cuda" of every op run on CPU tensors when it is forced, until the process ends."""
    library()
    for op in OPS.values():
        op.kernels[:] = [
            dataclasses.replace(k, interpreted=("cpu",), missing=lambda: None) if k.name == "cuda" else k
            for k in op.kernels
        ]


@contextlib.contextmanager
def loaded():
    """load() for the length of a block."""
    before = {op: list(op.kernels) for op in OPS.values()}
    load()
    try:
        yield
    finally:
        for op, kernels in before.items():
            op.kernels[:] = kernels


def configure(seed: int = 0, counting: bool = False, multiprocessors: int = 4) -> None:
    """Sets the seed of the schedule, whether accesses are counted (slow), and the number of multiprocessors."""
    library().emulator_configure(seed, counting, multiprocessors)


@contextlib.contextmanager
def capability(own: int, ptx: int = 0, driver: int = 13000):
    """The GPU is of this compute capability (90 for sm_90). `ptx`: the driver compiled the kernels from PTX of an older
    target. `driver`: its version of CUDA, 13000 for 13.0.
    """
    library().emulator_set_capability(own, ptx, driver)
    try:
        yield
    finally:
        library().emulator_set_capability(80, 0, 13000)


@contextlib.contextmanager
def capturing():
    """The stream reports that a graph is captured; launches still run."""
    library().emulator_capture(True)
    try:
        yield
    finally:
        library().emulator_capture(False)


@contextlib.contextmanager
def full():
    """cudaMalloc fails with an out-of-memory error; the allocator of PyTorch still works."""
    library().emulator_fill(True)
    try:
        yield
    finally:
        library().emulator_fill(False)


@contextlib.contextmanager
def counting(seed: int = 0, multiprocessors: int = 4):
    """Yields a function that returns the Counters of all launches in the block so far."""
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
