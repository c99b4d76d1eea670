"""The launches of Triton kernels that the static report compiles: every kernel and dtype, larger ranks, other tiles.

This file repeats nothing about a kernel: a job names an op's own launch with sample arguments of pypeft_fast.testing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from pypeft_fast._op import OPS
from pypeft_fast.kernels import _tiles
from pypeft_fast.testing import VARIANTS, Case, sample

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = {BF16: "bf16", F16: "fp16", F32: "fp32"}
M, K, N = 4096, 4096, 4096
# One GPU of each family with the same tensor-core instructions. For these GPUs all dtypes, larger ranks and the tiles
# that tuning may choose are compiled as well.
FAMILIES = ("sm_80", "sm_90", "sm_100", "gfx942")
RANKS = (64, 128)
P, FEW = 0.05, 64  # the dropout rate, and a number of rows for which K is split
# The features of a launch besides the options of its op's variant.
DROPOUT, GROUPS, SPLIT, BY_ROW = ", dropout", ", 3 groups", ", split K", ", few rows"
VENDOR = ", vendor's GEMM"  # the pass before it, of the kernel "triton+blas"
LAUNCHES = {
    "lora_shrink": ("", DROPOUT, DROPOUT + GROUPS, DROPOUT + SPLIT),
    "lora_shrink, segments": ("", DROPOUT, DROPOUT + SPLIT),
    "lora_linear, segments": ("", BY_ROW),
    "lora_dx, segments": ("", DROPOUT),
    "lora_da, segments": ("", DROPOUT),
    "lora_linear": ("", VENDOR),
    "lora_dx": ("", DROPOUT, DROPOUT + VENDOR),
    "lora_da": ("", DROPOUT),
}
# Ops with several launches that have tiles: {name: the launch's name in _tiles}.
SEGMENTED = {
    "multi_lora_forward, shrink": "lora_shrink, segments",
    "multi_lora_forward, linear": "lora_linear, segments",
    "multi_lora_backward, ds_db": "lora_ds_db, segments",
    "multi_lora_backward, dx": "lora_dx, segments",
    "multi_lora_backward, da": "lora_da, segments",
}
ADAPTERS = {"adapters": 8}
# {name: (op, options, launch)} for each variant of each op with a Triton kernel.
NAMES = {
    title + launch: (op, options, launch)
    for title, (op, options) in VARIANTS.items()
    if any(kernel.name == "triton" for kernel in OPS[op].kernels) and not op.startswith("multi")
    for launch in LAUNCHES.get(op, ("",))
} | {
    name + launch: (name.partition(",")[0], ADAPTERS, launch)
    for name, tiles in SEGMENTED.items()
    for launch in LAUNCHES.get(tiles, ("",))
}
# The launches that need the most registers: FULL for the ops whose kernel depends on the rank, TILED for the ops with
# separate tiles (lora_da has the tiles of lora_shrink, ia3_linear those of lora_linear).
FORWARD, BACKWARD = "multi_lora_forward", "multi_lora_backward"
FULL = ("lora_shrink, dropout", "lora_linear, scale", "lora_ds_db", "lora_dx, dropout", "lora_da, dropout",
        f"{FORWARD}, shrink, dropout", f"{FORWARD}, linear", f"{BACKWARD}, ds_db", f"{BACKWARD}, dx, dropout",
        f"{BACKWARD}, da, dropout")  # fmt: skip
TILED = ("lora_shrink, dropout", "lora_ds_db", "lora_linear", "lora_linear, scale", "lora_dx, dropout",
         "ia3_dx_dl, feedforward", f"{FORWARD}, shrink, dropout", f"{FORWARD}, linear", f"{FORWARD}, linear, few rows",
         f"{BACKWARD}, ds_db", f"{BACKWARD}, dx, dropout", "lora_dx, dropout" + VENDOR)  # fmt: skip
# Of these, those that cut a float32 adapter beside bfloat16 into parts.
TILED_IN_PARTS = ("lora_shrink, dropout", "lora_ds_db", "lora_da, dropout", f"{FORWARD}, shrink, dropout",
                  f"{BACKWARD}, ds_db", f"{BACKWARD}, da, dropout")  # fmt: skip
IN_PARTS = (*TILED_IN_PARTS, "lora_shrink, dropout, 3 groups")


@dataclass(frozen=True)
class Job:
    """One launch, compiled for one target."""

    target: str  # "sm_80", .. "gfx942"
    name: str  # a key of NAMES
    x: torch.dtype = BF16
    adapter: torch.dtype = BF16
    rank: int = 16
    tf32: bool = False  # torch.backends.cuda.matmul.fp32_precision
    config: _tiles.Config | None = None  # None: the default one

    @property
    def op(self) -> str:
        return self.name.partition(",")[0]

    @property
    def tuned(self) -> str:
        """The name of the launch in _tiles."""
        op, _, rest = self.name.partition(", ")
        if op.startswith("multi"):
            return SEGMENTED[f"{op}, {rest.partition(',')[0]}"]
        if VENDOR in self.name:
            return "low_rank"
        return self.name if self.name in _tiles.GEMMS else self.op

    @property
    def like(self) -> str:
        """The launch whose tiles it has: its own name in _tiles, or that of the launch for one adapter."""
        return self.tuned.removesuffix(_tiles.SEGMENTS)

    @property
    def arch(self):
        return architecture(self.target)

    @property
    def bits(self) -> int:
        """The bits of an element of the operands that decide the tiles: those of the frozen product, or all."""
        return _tiles.bits_of(self.arch, (self.x,) if self.like in _tiles.GEMMS else (self.x, self.adapter))

    @property
    def kernel(self) -> str:
        """The op's kernel that makes the launch."""
        return "triton+blas" if VENDOR in self.name else "triton"

    @property
    def tiles(self) -> _tiles.Config:
        return self.config or _tiles.default(self.tuned, self.arch, self.bits)

    @property
    def dtypes(self) -> str:
        both = DTYPES[self.x] if self.x == self.adapter else f"{DTYPES[self.x]}+{DTYPES[self.adapter]}"
        return both + " as tf32" * self.tf32

    @property
    def title(self) -> str:
        return self.name + (f", r={self.rank}" if self.rank != Job.rank else "")

    def exact(self) -> bool:
        """Whether the products are in float32 at full precision, which tensor cores do not compute."""
        return self.x == self.adapter == F32 and not self.tf32


def architecture(target: str):
    """The target's architecture in _tiles."""
    return int(target[3:]) if target.startswith("sm_") else target


def arguments(job: Job) -> tuple:
    """The op's arguments, as meta tensors: a launch is compiled and never run."""
    op, options, launch = NAMES[job.name]
    rows = FEW if SPLIT in launch or BY_ROW in launch else M
    case = Case(rows, K, N, job.rank, P if DROPOUT in launch else 0.0, job.x, job.adapter)
    with torch.device("meta"):
        args = sample(op, replace(case, options=options))
        if GROUPS in launch:
            x, A, p, seed = args
            args = x, A.repeat(3, 1), p, seed.expand(3)
    return args


def plan(targets: tuple[str, ...]) -> Iterator[Job]:
    """Every job for these targets."""
    for target in targets:
        for name in NAMES:
            yield Job(target, name)
            yield Job(target, name, F32, F32)
            if name.startswith(("lora", "multi")):
                yield Job(target, name, BF16, F32)
            if target in FAMILIES:
                yield Job(target, name, F16, F16)
                if name not in _tiles.ELEMENTWISE:
                    yield Job(target, name, F32, F32, tf32=True)
        if target in FAMILIES:
            yield from (Job(target, name, rank=r) for name in FULL for r in RANKS)
            for name in TILED:
                yield from other_tiles(Job(target, name))
            if _tiles.in_parts(architecture(target), (BF16, F32)):
                for name in IN_PARTS:
                    yield from (Job(target, name, BF16, F32, rank=r) for r in RANKS)
                for name in TILED_IN_PARTS:
                    yield from other_tiles(Job(target, name, BF16, F32))
            for name in ("lora_linear", "lora_linear, scale", f"{FORWARD}, linear"):
                yield from other_tiles(Job(target, name, F32, F32, tf32=True))


def other_tiles(job: Job) -> Iterator[Job]:
    """The job with each configuration, other than the default, that tuning may choose."""
    configs = list(_tiles.candidates(job.tuned, job.arch, job.bits).values())
    return (replace(job, config=config) for config in configs[1:])
