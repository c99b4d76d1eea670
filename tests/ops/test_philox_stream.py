"""The kernels' Philox where the counter passes 32 bits, which no mask in a test's memory reaches."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pypeft_fast.ops import _triton, philox
from tests.ops.test_cpu_isa import AVAILABLE
from tests.sanitizers import build

SEED, T = -0x0123456789ABCDEF, 20000
KEY = (SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF)
FIRSTS = [0, 2**32 - 9, 2**32, 5 * 2**32 - 30, 2**45 + 12345]
COUNT = 61  # no multiple of what a vector makes at once


def words(index):
    return philox.philox_4x32_7((index & 0xFFFFFFFF, index >> 32, 0, 0), KEY)


def byte(index):
    return sum((words(index)[j // 2] >> 16 * (j % 2) & 0xFFFF >= T) << j for j in range(8))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if shutil.which(build.COMPILER) is None:
        pytest.skip(f"no {build.COMPILER} here; csrc/ needs a C++ compiler")
    out = tmp_path_factory.mktemp("philox") / "stream.so"
    source = Path(__file__).with_name("philox_stream.cpp")
    command = build.compile_command(build.extension(), source, out)
    command.remove("-c")
    subprocess.run([build.COMPILER, *command, "-O1", "-w", "-shared"], check=True)
    return ctypes.CDLL(str(out))


@pytest.mark.cpu
@pytest.mark.parametrize("first", FIRSTS)
@pytest.mark.parametrize("isa", AVAILABLE)
def test_of_the_cpu_kernels(library, isa, first):
    found = (ctypes.c_uint8 * COUNT)()
    stream = getattr(library, f"stream_{isa}")
    stream.argtypes = [ctypes.c_int64, ctypes.c_uint16, ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p]
    stream.restype = None
    stream(SEED, T, first, COUNT, found)
    assert list(found) == [byte(first + i) for i in range(COUNT)]


if _triton.why_no_triton() is None:
    import triton
    import triton.language as tl

    from pypeft_fast.kernels._philox import philox_4x32_7

    @triton.jit
    def _words(first_ptr, seed_ptr, out_ptr):
        at = tl.arange(0, 16)
        w0, w1, w2, w3 = philox_4x32_7(tl.load(first_ptr) + at, tl.load(seed_ptr))
        tl.store(out_ptr + 4 * at, w0.to(tl.int64))
        tl.store(out_ptr + 4 * at + 1, w1.to(tl.int64))
        tl.store(out_ptr + 4 * at + 2, w2.to(tl.int64))
        tl.store(out_ptr + 4 * at + 3, w3.to(tl.int64))


@pytest.mark.skipif(_triton.why_no_triton() is not None, reason=str(_triton.why_no_triton()))
@pytest.mark.parametrize("first", FIRSTS)
def test_of_the_triton_kernels(first):
    out = torch.empty(16, 4, dtype=torch.int64)
    _words[(1,)](torch.tensor([first]), torch.tensor([SEED]), out)
    assert out.tolist() == [list(words(first + i)) for i in range(16)]
