"""The tile sizes of a launch: a default for each architecture, or the fastest candidate measured on the user's GPU.

An architecture is a compute capability or an AMD target, not the name of a GPU. The candidates of an op are the
configurations whose tiles fit into shared memory and whose accumulator fits into registers. `_tuning` times the
candidates once for each bucket of shapes and keeps the fastest on disk.
"""

import functools
from dataclasses import dataclass

import torch
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import _tuning

KIB = 1024
# The most shared memory of a block, and the number of 32-bit registers of a multiprocessor.
SHARED = {80: 163 * KIB, 86: 99 * KIB, 89: 99 * KIB, 90: 227 * KIB, 100: 227 * KIB, 120: 99 * KIB, "gfx942": 64 * KIB}
REGISTERS = 65536


@dataclass(frozen=True)
class Config:
    """A tile of BM rows, BO output columns, BI of the inner axis and BR ranks; an op ignores the sizes it has not."""

    BM: int
    BO: int
    BI: int = 64
    BR: int = 64
    warps: int = 4
    stages: int = 3
    group: int = 8
    tma: bool = False
    specialize: bool = False

    def __str__(self):
        flags = "-tma" * self.tma + "-ws" * self.specialize
        return f"{self.BM}x{self.BO}x{self.BI}-w{self.warps}-s{self.stages}{flags}"


# The configurations of the interpreter are small, so that small tensors have several tiles.
_INTERPRETER = {"gemm": Config(64, 32, 64, 32), "rows": Config(64, 64, 64, 64), "lora_shrink": Config(32, 32, 64, 64)}
GEMMS = ("lora_linear", "lora_linear, scale", "lora_dx", "ia3_linear", "ia3_dx_dl")
SEGMENTS = ", segments"  # ends the name of a launch over rows of several adapters, which has the tiles of one adapter's
ELEMENTWISE = ("swiglu", "swiglu_backward", "dequantize")  # without a product: only BM, BO, warps and stages are used


@functools.cache
def architecture(device):
    """The architecture of a device: 80, 86, ..., 120, "gfx942", or "interpreter" for the CPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def known(arch):
    """The newest listed architecture that is not newer than `arch`; "gfx942" for every AMD target."""
    if arch in SHARED:
        return arch
    if not isinstance(arch, int):
        return "gfx942"
    return max((a for a in SHARED if isinstance(a, int) and a <= arch), default=80)


@functools.cache
def default(op, arch, bits):
    """The configuration before tuning; bits as `bits_of` returns them."""
    segments, op = op.endswith(SEGMENTS), op.removesuffix(SEGMENTS)
    if arch == "interpreter":
        return _INTERPRETER.get(op) or _INTERPRETER["gemm" if op in GEMMS else "rows"]
    arch, wide = known(arch), bits == 32
    stages = 2 if arch == "gfx942" else 3
    if op == "lora_ds_db":  # wide: each block of columns stores a partial dS
        if segments and not wide and arch not in (90, 100):  # larger tiles spill there, from some rank on
            return Config(16, 128, BR=32, warps=8, stages=2)
        narrow = wide or arch == "gfx942"  # 256 columns spill there with more than 32 ranks
        # Each warp makes fragments of all of B: fewer warps need fewer instructions. Elsewhere 4 would spill, and over
        # segments with Triton 3.6.
        warps = 4 if arch == 90 and not narrow and not segments else 8
        return Config(
            16 if wide else 32, 128 if narrow else 256, BR=16 if wide and segments else 32, warps=warps, stages=2
        )
    if op not in GEMMS:  # bandwidth-bound: small tiles, several blocks a multiprocessor
        if wide:  # with a third stage Triton 3.6 and 3.7 spill in lora_shrink on sm_90, and 3.9 over segments on sm_80
            stages = 2 if op == "lora_shrink" and (arch == 90 or (segments and arch == 80)) else stages
            warps = 8 if op == "low_rank" else 4  # with 4 the full precision spills on sm_100 and sm_120
            # Over segments 64 columns spill on sm_80 in full precision; they are a candidate.
            columns = 64 if op == "lora_da" and not (segments and arch == 80) else 32
            return Config(64 if arch == "gfx942" else 32, columns, BR=32, warps=warps, stages=stages)
        warps = 8 if (op, arch) == ("lora_da", 100) else 4  # with 4 warps ptxas allows 32 registers, and spills
        tall = (
            arch == 90 and op not in ELEMENTWISE and not (segments and op == "lora_da")
        )  # which spills with Triton 3.7
        return Config(64 if tall else 32, 64, BR=64, warps=warps, stages=stages)
    if wide:  # no spills: ptxas limits 8 warps on sm_100 to 128 registers, and 3 stages on sm_80 to 80
        warps = 4 if segments or (op == "ia3_dx_dl" and arch in (80, 100)) else 8
        if arch == 80 and not segments or segments and (op, arch) == ("lora_dx", 90):  # the latter with Triton 3.6
            stages = 2
        return Config(64, 64, 32, 16, warps=warps, stages=stages)
    if arch in (90, 100):
        return Config(128, 128, 64, 16, warps=8, stages=4, tma=True)
    if arch in (80, "gfx942"):
        return Config(128, 128, 32, 16, warps=8, stages=4 if arch == 80 else 2)
    return Config(128, 64, 32, 16, warps=4 if segments and arch == 120 else 8, stages=3)  # 8 would spill


def in_parts(arch, dtypes):
    """Whether these operands, the long one first, are multiplied as bfloat16, a float32 one cut into three parts.

    Before sm_90 no tensor core reads an operand from shared memory, and the parts' fragments spill.
    """
    able = arch == "interpreter" or (isinstance(arch, int) and arch >= 90)
    return able and dtypes[0] == torch.bfloat16 and torch.float32 in dtypes


def bits_of(arch, dtypes):
    """Of an element of the operands as they are multiplied, the long one first: of that one or of the widest."""
    return 8 * (dtypes[0].itemsize if in_parts(arch, dtypes) else max(dtype.itemsize for dtype in dtypes))


# (BM, BO, warps) of 16-bit operands with which ptxas spills, because it keeps a thread to 80, 96 or 128 registers; most
# of them beside the parts of a float32 adapter, on gfx942 with 64 ranks. A launch over segments has the entries of its
# op as well.
_SPILLING = {
    ("lora_shrink", 100): {(32, 64, 8)},
    ("lora_ds_db", 100): {(16, 128, 4), (128, 64, 4)},
    ("lora_da", 100): {(128, 64, 8)},
    ("lora_shrink, segments", 80): {(32, 128, 4)},
    ("lora_shrink, segments", 90): {(16, 128, 4), (32, 128, 4), (32, 128, 8), (64, 128, 4), (128, 64, 4)},
    ("lora_shrink, segments", 100): {(32, 128, 4), (32, 128, 8)},
    ("lora_ds_db, segments", 80): {(16, 128, 4), (32, 64, 4), (32, 128, 4), (32, 128, 8), (64, 128, 4), (64, 128, 8)},
    ("lora_ds_db, segments", 90): {(32, 128, 4), (32, 256, 4), (64, 128, 4), (128, 64, 4)},
    ("lora_ds_db, segments", 100): {(16, 128, 8), (32, 64, 4), (32, 64, 8), (32, 128, 4), (32, 128, 8), (64, 64, 4),
                                    (64, 128, 4), (64, 128, 8), (128, 64, 8)},
    ("lora_ds_db, segments", "gfx942"): {(32, 128, 8), (64, 128, 8), (128, 64, 8)},
    ("lora_da, segments", 90): {(64, 64, 4)},
    ("lora_da, segments", 100): {(16, 128, 4), (64, 64, 8), (64, 128, 4)},
}  # fmt: skip


def fits(op, config, arch, bits):
    """Whether all stages fit into shared memory, the accumulator fits into the registers of its warps, and every
    thread has at least 16 bytes of a tile to load."""
    op, arch = op.removesuffix(SEGMENTS), known(arch)
    lanes = 64 if arch == "gfx942" else 32
    if op in GEMMS:
        accumulator = config.BM * config.BO
        stored = accumulator if config.tma else 0  # TMA writes the output from shared memory
        tiles = config.stages * (config.BM + config.BO) * config.BI + stored
        largest = max(config.BM, config.BO) * config.BI
    else:
        tiles = config.stages * config.BM * (config.BO + config.BR)
        accumulator = max(config.BM, config.BO) * config.BR
        largest = config.BM * config.BO
    # tcgen05 accumulates in tensor memory. On other architectures the accumulator takes at most 128 registers of 255.
    enough = arch == 100 or accumulator <= 128 * lanes * config.warps
    loaded = largest * bits // 8 >= 16 * lanes * config.warps
    return tiles * bits // 8 <= SHARED[arch] and enough and loaded


@functools.cache
def candidates(op, arch, bits):
    """{name: configuration} of the configurations to time, the default first."""
    base = default(op, arch, bits)
    if arch == "interpreter":
        return {str(base): base}
    launch, arch = op, known(arch)
    segments, op, tma = launch.endswith(SEGMENTS), launch.removesuffix(SEGMENTS), arch in (90, 100)
    if op in GEMMS:
        inner = 32 if bits == 32 or (op == "lora_dx" and not tma) else 64  # lora_dx's masked loads need registers
        # Over segments ptxas keeps the threads of 16 rows to 80 or 128 registers, and spills.
        least = 32 if segments and arch not in (100, "gfx942") else 16
        shapes = [(least, 64, 4), (64, 64, 4), (64, 128, 4), (128, 128, 8)]
        # ia3_dx_dl holds a tile of x beside the accumulator, and would spill with 128 registers for each. lora_linear
        # with a scale would spill on sm_100: a thread reads a whole row from tensor memory, with its scale and bias.
        # lora_linear's bias spills beside tf32 fragments, and on sm_100 where the warps are not specialised; lora_dx's
        # mask on sm_80. The accumulator of an adapter beside that of the tile takes as many registers.
        if not segments and op != "ia3_dx_dl" and (op, arch) != ("lora_linear, scale", 100):
            if (op, bits) != ("lora_linear", 32) and (op, arch) != ("lora_dx", 80):
                shapes.append((128, 256, 8))
            if arch != 100 and bits == 16:  # spills when read from tensor memory, and beside tf32 fragments
                shapes.append((128, 128, 4))
        space = [
            Config(BM, BO, BI, base.BR, warps, stages, tma=tma, specialize=specialize)
            for BM, BO, warps in shapes
            for BI, stages in ((inner, 4 if tma and BO < 256 else 3), (inner // 2, 4))
            # Triton 3.9 does not specialise warps on sm_90: 8 warps are not split, and with 4 its compiler pass fails.
            for specialize in ((False, True) if arch == 100 and warps == 8 else (False,))
            if specialize or (op, arch, BO) != ("lora_linear", 100, 256)
        ]
    else:
        shapes = [(16, 128), (32, 64), (32, 128), (64, 64), (64, 128), (128, 64)]
        if (op, arch) == ("lora_ds_db", 90):
            shapes.append((32, 256))
        if (launch, arch) == ("lora_ds_db" + SEGMENTS, 100):
            shapes.append((16, 64))
        spilling = {tiles for name in {launch, op} for tiles in _SPILLING.get((name, arch), ())}
        space = [
            Config(BM, BO, base.BI, base.BR, warps, base.stages)
            for BM, BO in shapes
            for warps in (4, 8)
            if bits == 32 or (BM, BO, warps) not in spilling
        ]
    return {str(c): c for c in (base, *space) if c == base or fits(op, c, arch, bits)}


def launch(op, run, operands, sizes, *options):
    """Runs `run(config)` with the configuration for these operands and sizes; times the candidates if none is known.

    operands: their dtypes decide which tiles fit. sizes: the rows first. options: other properties that the time
    depends on, such as dropout, the adapter's dtype, and which axis of a weight is contiguous.
    """
    first = operands[0]
    arch = architecture(first.device)
    bits = bits_of(arch, tuple(t.dtype for t in operands))
    if arch == "interpreter":
        run(default(op, arch, bits))
        return
    key = (op, "tiles", arch, *(t.dtype for t in operands), _tuning.bucket(sizes[0]), *sizes[1:], *options)
    options = candidates(op, arch, bits)
    run(options[_tuning.fastest(key, options, run, first.device)])


def shrunk(tile, size):
    """`tile`, or if the axis is shorter the next power of two of `size`, but at least 16 for the tensor cores."""
    return tile if size >= tile else max(16, _tuning.bucket(size))


def element(dtype):
    """Triton's name of a dtype of PyTorch."""
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


def cdiv(size, tile):
    """triton.cdiv for the host. triton.cdiv itself takes 2 us a call, because it also serves compiled code."""
    return -(-size // tile)


@functools.cache
def processors(device):
    """The number of multiprocessors of a GPU; 3 in the interpreter, so that a program has several tiles."""
    return 3 if device.type != "cuda" else torch.cuda.get_device_properties(device).multi_processor_count


def split(rows, BM, others, device):
    """(rows of a stripe, number of stripes): about two programs for each multiprocessor; a stripe is whole tiles."""
    tiles = cdiv(rows, BM)
    stripes = min(tiles, max(1, 2 * processors(device) // others))
    stripe_tiles = cdiv(tiles, stripes)
    return stripe_tiles * BM, cdiv(tiles, stripe_tiles)


@dataclass(frozen=True)
class Gemm:
    """A launch of out [M, O] = x [M, I] @ w [I, O], with its operands as tensor descriptors or tensors."""

    x: object
    w: object
    out: object
    BM: int
    BO: int
    BI: int
    BR: int
    group: int
    tma: bool
    w_by_rows: bool
    specialize: bool
    programs: int

    @classmethod
    def fit(cls, config, x, w, out, rank=0):
        (M, I), O = x.shape, w.shape[1]
        BM, BO, BI = shrunk(config.BM, M), shrunk(config.BO, O), shrunk(config.BI, I)
        w_by_rows = w.stride(1) == 1
        by_rows = w if w_by_rows else w.t()
        tma = config.tma and all(map(_describable, (x, by_rows, out)))
        if tma:
            out = TensorDescriptor.from_tensor(out, [BM, BO])
            x = TensorDescriptor.from_tensor(x, [BM, BI])
            w = TensorDescriptor.from_tensor(by_rows, [BI, BO] if w_by_rows else [BO, BI])
        tiles = cdiv(M, BM) * cdiv(O, BO)
        return cls(
            x, w, out, BM, BO, BI, shrunk(config.BR, rank), config.group, tma, w_by_rows,
            tma and config.specialize, min(max(tiles, 1), processors(out.base.device if tma else out.device)),
        )  # fmt: skip

    def like_out(self, matrix):
        """Another matrix of the shape of the output, as a tensor descriptor if the output is a tensor descriptor."""
        return TensorDescriptor.from_tensor(matrix, [self.BM, self.BO]) if self.tma else matrix


def _describable(matrix):
    """Whether TMA can read the matrix: not empty, contiguous rows, address and row stride multiples of 16 bytes."""
    step = matrix.stride(0) * matrix.element_size()
    return matrix.numel() > 0 and matrix.stride(1) == 1 and step > 0 and (step | matrix.data_ptr()) % 16 == 0
