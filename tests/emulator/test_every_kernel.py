"""Every kernel of csrc/cuda: the same bits in 20 schedules, no bank conflicts, whole sectors, each byte moved once.

The sizes, the rank and the number of multiprocessors determine the kernel. PATHS has an entry for each kernel.
"""

import dataclasses
import itertools
import re
import subprocess
from dataclasses import dataclass

import pytest
import torch

import pypeft_fast as pf
from pypeft_fast._op import OPS
from pypeft_fast.ops.multi_lora_forward import CUDA_ROWS
from pypeft_fast.testing import VARIANTS, Case, sample
from tests import emulator
from tests.emulator.build import build
from tests.emulator.launches import DECODE, DTYPES, LAYOUTS, RUNS, arguments
from tests.emulator.test_ops import counted
from tests.interpreter import python

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Path:
    op: str
    odd: Case  # several tiles in each direction, the last ones partial
    even: Case  # whole tiles only
    multiprocessors: int  # of a GPU on which these sizes select the kernel
    sectors: float = 1.02  # most sectors touched in `even`, relative to the fewest that could hold the bytes
    moved: float = 1.05  # most bytes moved from and to memory, relative to the bytes of arguments and results
    launches: int = 1


def products(op, **options):
    """gemm.cuh: tiles of 128 x 128 if there is one for every multiprocessor, otherwise smaller tiles."""
    large, small = Case(136, 136, 136, 5, 0.3, options=options), Case(70, 72, 136, 5, 0.3, options=options)
    wide, narrow = Case(256, 256, 256, 16, 0.3, options=options), Case(128, 128, 192, 16, 0.3, options=options)
    return {"large tiles": Path(op, large, wide, 1), "small tiles": Path(op, small, narrow, 132)}


def decoding(op, sectors=(1.1, 1.1), **options):
    """decode.cu with up to 8 and up to 16 rows."""
    return {
        f"decoding {M} rows": Path(
            op, Case(M - 3, 136, 40, 5, options=options), Case(M, 512, 256, 16, options=options), 4, allowed
        )
        for M, allowed in zip((8, 16), sectors, strict=True)
    }


def decoding_codes(op, sectors, **options):
    """decode_codes.cu with up to 8 and up to 16 rows.

    `even` has scales that are not nested, because some of the 256 values of nested scales are never read. A lane reads
    at least 64 bytes of a row of X, 16 bytes at a time, so that L1 has the second half of each sector.
    """
    return {
        f"decoding {M} rows of codes": Path(
            op,
            Case(M - 3, 160, 40, 5, format="nf4", options=options),
            Case(M, 512, 256, 16, format="fp4, 64", options=options),
            4,
            allowed,
        )
        for M, allowed in zip((8, 16), sectors, strict=True)
    }


def segments(**options):
    """decode.cu and decode_codes.cu for rows of several adapters, after the launch that computes s.

    Both launches read x, and the second one reads s. A thread reads 16 bytes of a row of B at a time, and L1 has the
    second half of each sector.
    """
    dense = decoding("multi_lora_forward", (1.2, 1.2), **options)
    codes = decoding_codes("multi_lora_forward", (1.55, 1.55), **options)
    return {
        name: dataclasses.replace(path, launches=2, moved=1.05 if name in dense else 1.15)
        for name, path in (dense | codes).items()
    }


def dequantising(format):
    odd, even = (Case(1, *sides, 1, format=format) for sides in ((75, 137), (512, 256)))
    return {"a weight": Path("dequantize", odd, even, 4)}


def sums(op, K, N, *sectors):
    """The kernels with tiles of 16 or 64 ranks.

    K, N: sizes of `even` for which one multiprocessor computes each sum in one part, except s of few rows. In `odd`
    every sum has several parts. sectors: more than the fewest sectors are allowed, because 64 columns of the mask are 8
    bytes, and a gradient in half precision is stored in pieces of 16 bytes, which L2 joins.
    """
    return {
        "16 ranks": Path(op, Case(70, 328, 520, 3, 0.3), Case(128, K, N, 16, 0.3), 132, sectors[0]),
        "64 ranks": Path(op, Case(70, 328, 520, 20, 0.3), Case(128, K, N, 64, 0.3), 132, sectors[1]),
        "few rows": Path(op, Case(5, 328, 520, 3), Case(8, 512, 256, 16), 4, sectors[2], moved=1.1),
    }


FEEDFORWARD = VARIANTS["ia3_linear, feedforward"][1]
SCALE = VARIANTS["lora_linear, scale"][1]
BY_OP = {
    "lora_shrink": sums("lora_shrink", 128, 192, 1.15, 1.25, 1.05),
    "lora_linear": products("lora_linear") | decoding("lora_linear") | decoding_codes("lora_linear", (3.0, 3.0)),
    "lora_linear, scale": products("lora_linear", **SCALE)
    | decoding("lora_linear", **SCALE)
    | decoding_codes("lora_linear", (3.0, 3.0), **SCALE),
    "lora_ds_db": sums("lora_ds_db", 128, 128, 1.1, 1.2, 1.4),
    "lora_dx": products("lora_dx"),
    "lora_da": sums("lora_da", 512, 192, 1.15, 1.3, 1.65),
    "ia3_linear": products("ia3_linear") | decoding("ia3_linear") | decoding_codes("ia3_linear", (3.0, 3.0)),
    "ia3_linear, feedforward": products("ia3_linear", **FEEDFORWARD)
    | decoding("ia3_linear", **FEEDFORWARD)
    | decoding_codes("ia3_linear", (3.0, 3.0), **FEEDFORWARD),
    "ia3_dx_dl": products("ia3_dx_dl"),
    "ia3_dx_dl, feedforward": products("ia3_dx_dl", **FEEDFORWARD),
    "multi_lora_forward": segments(),
    "multi_lora_forward, one adapter": segments(adapters=1),
    "multi_lora_forward, 8 adapters": segments(adapters=8),
    "multi_lora_forward, 64 adapters": segments(adapters=64),
    "dequantize": dequantising("fp4, 64"),
    "dequantize, int8": dequantising("int8"),
    "dequantize, fp8": dequantising("fp8"),
}
PATHS = {f"{name}: {way}": path for name, ways in BY_OP.items() for way, path in ways.items()}
EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def test_every_variant_of_every_op_has_paths():
    assert set(BY_OP) == {title for title, run in VARIANTS.items() if run in RUNS}


@pytest.fixture(autouse=True)
def _loaded():
    with emulator.loaded():
        yield
    emulator.configure()


def assert_every_schedule_gives_the_same_bits(op, args, multiprocessors):
    """Compares 20 schedules, which are orders of blocks, warps and lanes."""
    outputs = []
    with pf.using("cuda"):
        for seed in range(20):
            emulator.configure(seed, multiprocessors=multiprocessors)
            outputs.append(OPS[op](*args))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=0, atol=0)


OTHERS = [p for p in itertools.product(DTYPES, LAYOUTS) if p != ((BF16, None), "contiguous")]


@EVERY_PATH
@pytest.mark.parametrize(
    "dtypes,layout",
    [((BF16, None), "contiguous"), *(pytest.param(*other, marks=pytest.mark.slow) for other in OTHERS)],
)
def test_every_schedule_gives_the_same_bits(path, dtypes, layout):
    strided = "strided" if layout == "strided" else "contiguous"
    case = dataclasses.replace(path.odd, dtype=dtypes[0], adapter=dtypes[1], layout=strided)
    assert_every_schedule_gives_the_same_bits(path.op, arguments(path.op, layout, case), path.multiprocessors)


# Sums that 132 multiprocessors share, in the wide and the tall shape of blocks.
SHARED = [
    Case(301, 533, 1031, 16, 0.3, BF16),
    Case(600, 1040, 520, 16, 0.3, F16),
    Case(300, 264, 272, 40, 0.3, F32),
]


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted({path.op for path in PATHS.values()}))
@pytest.mark.parametrize("case", SHARED, ids=str)
def test_every_schedule_of_a_large_gpu_gives_the_same_bits(op, case):
    if op == "multi_lora_forward":  # C++ has it for decoding alone
        case = dataclasses.replace(case, M=CUDA_ROWS, p=0.0)
    assert_every_schedule_gives_the_same_bits(op, sample(op, case), 132)


@EVERY_PATH
@pytest.mark.parametrize("dtype,adapter", [(BF16, None), (F32, None), (BF16, F32)])
def test_accesses_are_coalesced_free_of_conflicts_and_made_once(path, dtype, adapter):
    case = dataclasses.replace(path.even, dtype=dtype, adapter=adapter)
    split = path.op in ("lora_shrink", "lora_ds_db", "lora_da")  # the sums are split for the number of multiprocessors
    c, given, returned = counted(path.op, case, 1 if split else path.multiprocessors)
    assert c.launches == path.launches
    assert c.load.sectors + c.store.sectors <= path.sectors * (c.load.needed + c.store.needed)
    assert (
        c.ldmatrix.conflicts
        == c.copies.conflicts
        == c.shared_load.conflicts
        == 0
        < c.shared_load.requests + c.ldmatrix.requests
    )
    # The loop of decoding needs no shared memory. Its epilogue stores four times a warp, eight rows each, with one bank
    # conflict a store.
    decodes = path.op.endswith(DECODE) and path.even.M <= 16
    assert c.shared_store.conflicts <= (8 * 4 * 256 // 16 * path.even.M // 8 if decodes else 0)
    # Every tensor is read from memory once and stored once. L2 holds what a launch stores and loads again.
    moved = 32 * (c.load.first + c.store.first)
    assert given + returned <= moved + 64 and moved <= path.moved * (given + returned)


REACHED = """
from tests.emulator.launches import *
from tests.emulator.test_every_kernel import PATHS, dataclasses
with emulator.loaded(), pf.using("cuda"):
    matmul = torch.backends.cuda.matmul
    for path, (dtype, adapter), layout in itertools.product(PATHS.values(), DTYPES, LAYOUTS):
        emulator.configure(multiprocessors=path.multiprocessors)
        strided = "strided" if layout == "strided" else "contiguous"
        args = arguments(path.op, layout, dataclasses.replace(path.odd, dtype=dtype, adapter=adapter, layout=strided))
        for matmul.fp32_precision in ("ieee", "tf32"):
            OPS[path.op](*args)
    ways = set(shared_bytes())
    matmul.fp32_precision = "ieee"
    run_every_kernel()
print(len(ways), sorted(set(shared_bytes()) - ways))
"""


@pytest.mark.slow
def test_every_kernel_is_reached():
    """PATHS reaches every kernel of tests.emulator.launches, which are all kernels, as `make gpu-static` checks."""
    done = python("-c", REACHED, timeout=600, expect_success=True)
    count, _, missing = done.stdout.strip().partition(" ")
    assert int(count) > 60 and missing == "[]"


def test_only_copies_of_16_bytes_have_large_tiles():
    """Compiled for sm_80, the product with tiles of 128 x 128 and copies element by element spilled 64 bytes."""
    names = subprocess.run(["nm", "-C", build("kernels")], capture_output=True, text=True, check=True).stdout
    large = re.findall(r"gemm_kernel<.*?\b128, 128, .*?Math<\w+, \w+>, \w+, (\w+),", names)
    assert large and set(large) == {"true"}
