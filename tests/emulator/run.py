"""Runs the CUDA programs of the tests (programs/*.cu) on tensors. An error of the emulator is a RuntimeError."""

import ctypes
import functools

import torch

from .build import build


@functools.cache
def library(flavour: str = "plain") -> ctypes.CDLL:
    return ctypes.CDLL(build("programs", flavour))


def run(name: str, *arguments, seed: int = 0, counting: bool = False, flavour: str = "plain") -> None:
    """Runs the program `name`. The program may read every tensor, and write every tensor that is not a `const`."""
    lib = library(flavour)
    lib.emulator_configure(seed, counting, 4)
    lib.emulator_forget()
    passed = []
    for a in arguments:
        tensor = a.tensor if isinstance(a, const) else a
        if isinstance(tensor, torch.Tensor):
            writable = ctypes.c_bool(not isinstance(a, const))
            size = ctypes.c_int64(tensor.element_size())
            lib.emulator_know(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_int64(tensor.numel()), size, writable)
            passed.append(ctypes.c_void_p(tensor.data_ptr()))
        else:
            passed.append(a)
    function = getattr(lib, name)
    function.restype = ctypes.c_char_p
    failure = function(*passed)
    if failure is not None:
        raise RuntimeError(failure.decode())


class const:
    """A tensor that the program must not write."""

    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor
