"""The Philox of the kernels for counters past 32 bits, which no mask in a test reaches, and at the threshold."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from pypeft_fast.ops import _triton, philox
from tests.ops.test_cpu_isa import AVAILABLE
from tests.sanitizers import build

SEED = -0x0123456789ABCDEF
KEY = (SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF)
FIRSTS = [0, 2**32 - 9, 2**32, 5 * 2**32 - 30, 2**45 + 12345]
COUNT = 61  # not a multiple of the bytes that a vector computes


def words(index):
    return philox.philox_4x32_7((index & 0xFFFFFFFF, index >> 32, 0, 0), KEY)


def threshold(first):
    """The largest threshold that keeps lane 3 of counter `first`."""
    return words(first)[1] >> 16


def expected(first, count):
    lanes = [[words(first + i)[j // 2] >> 16 * (j % 2) & 0xFFFF for j in range(8)] for i in range(count)]
    return [sum((lane >= threshold(first)) << j for j, lane in enumerate(eight)) for eight in lanes]


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
def test_the_stream_of_the_cpu_kernels(library, isa, first):
    found = (ctypes.c_uint8 * COUNT)()
    stream = getattr(library, f"stream_{isa}")
    stream.argtypes = [ctypes.c_int64, ctypes.c_uint16, ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p]
    stream.restype = None
    stream(SEED, threshold(first), first, COUNT, found)
    assert list(found) == expected(first, COUNT)


if _triton.why_no_triton() is None:
    import triton
    import triton.language as tl

    from pypeft_fast.kernels._philox import keep_lanes

    @triton.jit
    def _bytes(first_ptr, seed_ptr, bytes_ptr, threshold):
        at = tl.arange(0, 64)
        _, packed = keep_lanes((tl.load(first_ptr) + at)[None, :], tl.load(seed_ptr), threshold)
        tl.store(bytes_ptr + at[None, :], packed)


@pytest.mark.skipif(_triton.why_no_triton() is not None, reason=str(_triton.why_no_triton()))
@pytest.mark.parametrize("first", FIRSTS)
def test_the_stream_of_the_triton_kernels(first):
    found = torch.empty(64, dtype=torch.int32)
    _bytes[(1,)](torch.tensor([first]), torch.tensor([SEED]), found, threshold(first))
    assert found.tolist() == expected(first, 64)
