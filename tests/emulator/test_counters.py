"""The counters for accesses of known cost, and the errors that AddressSanitizer finds."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.emulator import Counters
from tests.emulator.run import const, library, run

ROOT = Path(__file__).resolve().parents[2]


def counted(name, *arguments, launches=1) -> Counters:
    library().emulator_reset_counters()
    run(name, *arguments, counting=True)
    counters = Counters()
    library().emulator_read_counters(ctypes.byref(counters))
    assert counters.launches == launches
    return counters


def aligned(n):
    """n floats, aligned to 128 bytes."""
    x = torch.zeros(n + 32)
    start = -x.data_ptr() % 128 // 4
    return x[start : start + n]


@pytest.mark.parametrize("allow", [0, 1])
def test_only_a_launch_that_the_one_before_allows_overlaps(allow):
    x, twice, y = torch.randn(128), torch.empty(128), torch.empty(128)
    assert counted("overlap", const(x), twice, y, 2, allow, 0, launches=2).overlapping == allow


@pytest.mark.parametrize("stride,sectors", [(1, 4), (2, 8), (8, 32), (0, 1)])
def test_sectors_of_a_strided_load(stride, sectors):
    c = counted("strided", const(aligned(256)), aligned(32), stride)
    assert (c.load.requests, c.load.sectors, c.load.first) == (1, sectors, sectors)
    assert c.load.needed == (1 if stride == 0 else 4) and c.load.bytes == (4 if stride == 0 else 128)
    assert (c.store.requests, c.store.bytes, c.store.sectors, c.store.needed) == (1, 128, 4, 4)


def test_a_load_that_straddles_sectors():
    c = counted("strided", const(aligned(264)[4:]), aligned(32), 1)
    assert (c.load.sectors, c.load.needed) == (5, 4)


@pytest.mark.parametrize("row,conflicts", [(32, 32 * 31), (33, 0), (34, 32), (36, 32 * 3)])
def test_bank_conflicts_of_a_transpose(row, conflicts):
    c = counted("transpose", const(aligned(1024)), aligned(1024), row, 0)
    assert (c.shared_load.requests, c.shared_load.conflicts) == (32, conflicts)
    assert (c.shared_store.requests, c.shared_store.conflicts) == (32, 0)
    assert c.load.bytes == c.load.first * 32 == 4096 == c.store.bytes


def test_a_tile_with_padded_rows_is_read_by_ldmatrix_without_conflicts():
    x, w, y = torch.zeros(64, 96).bfloat16(), torch.zeros(64, 96).bfloat16(), torch.zeros(64, 64)
    c = counted("matmul", const(x), const(w), y, 96, 0)
    assert c.load.bytes == 2 * 64 * 96 * 2 and c.store.bytes == 64 * 64 * 4
    assert (c.ldmatrix.requests, c.ldmatrix.conflicts) == (
        4 * 3 * 2 * 4 * 4,
        0,
    )  # warps, steps, halves, loads, groups
    # Rows are 80 bytes apart. Of eight copies, four in each row, the last one is 128 bytes after the first one.
    assert c.copies.conflicts == c.copies.requests == 3 * 2 * 64 * 4 / 8


SANITIZED = """
import torch
from tests.emulator.run import run
x, y = torch.ones(16), torch.ones(16)
run({program}, flavour="sanitized")
print("survived", y[0].item())
"""


def sanitized(program):
    """The output of a process with AddressSanitizer, which also has red zones around the memory of torch."""
    asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {
        "LD_PRELOAD": asan.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "OMP_NUM_THREADS": "1",
    }
    code = SANITIZED.format(program=program)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return done.stdout + done.stderr


@pytest.mark.slow
def test_address_sanitizer_sees_what_goes_past_the_accessors():
    assert "survived 1.0" in sanitized('"raw", x, y, 15')
    assert "heap-buffer-overflow" in sanitized('"raw", x, y, 16')
    assert "use-after-poison" in sanitized('"raw_shared", y, 256')
