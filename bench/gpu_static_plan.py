"""Which of Triton's launches the static report compiles: every kernel in every dtype, larger ranks, and other tiles.

Nothing about a kernel is repeated here: a job names an op's own launch, whose arguments `arguments` makes.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from pypeft_fast.kernels import _tiles

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = {BF16: "bf16", F16: "fp16", F32: "fp32"}
M, K, N = 4096, 4096, 4096
# Of each family of GPUs, which have the same tensor-core instructions, the one for which all dtypes, larger ranks and
# the tiles that tuning may choose are compiled as well.
FAMILIES = ("sm_80", "sm_90", "sm_100", "gfx942")
RANKS = (64, 128)
NAMES = (
    "lora_shrink", "lora_shrink, dropout", "lora_shrink, dropout, 3 groups", "lora_shrink, dropout, split K",
    "lora_linear", "lora_linear, scale", "lora_ds_db", "lora_dx", "lora_dx, dropout", "lora_da", "lora_da, dropout",
    "ia3_linear", "ia3_linear, feedforward", "ia3_dx_dl", "ia3_dx_dl, feedforward", "swiglu", "swiglu_backward",
)  # fmt: skip
# The launches that hold most in registers: of the ops that the rank matters to, and of those with tiles of their own
# (lora_da has those of lora_shrink, ia3_linear those of lora_linear).
FULL = ("lora_shrink, dropout", "lora_linear, scale", "lora_ds_db", "lora_dx, dropout", "lora_da, dropout")
TILED = ("lora_shrink, dropout", "lora_ds_db", "lora_linear", "lora_linear, scale", "lora_dx, dropout",
         "ia3_dx_dl, feedforward")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One launch, compiled for one target."""

    target: str  # "sm_80", .. "gfx942"
    name: str  # of NAMES
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
        """The name that _tiles knows the launch by."""
        return self.name if self.name in _tiles.GEMMS else self.op

    @property
    def arch(self):
        return architecture(self.target)

    @property
    def bits(self) -> int:
        """Of an element of the operands that decide the tiles: of the frozen product, or the widest."""
        return 32 if F32 in ((self.x,) if self.op in _tiles.GEMMS else (self.x, self.adapter)) else 16

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
        """Whether its products are of float32 at full precision, which no tensor core forms."""
        return self.x == self.adapter == F32 and not self.tf32


def architecture(target: str):
    """What _tiles calls it."""
    return int(target[3:]) if target.startswith("sm_") else target


def arguments(job: Job) -> tuple:
    """Of the function that launches the op. The memory is never touched."""
    matrix = functools.partial(torch.empty, dtype=job.x)
    small = functools.partial(torch.empty, dtype=job.adapter)
    r = job.rank
    A, B, s, seed = small(r, K), small(N, r), small(M, r), torch.empty(1, dtype=torch.int64)
    mask = torch.empty(M, K // 8, dtype=torch.uint8)
    X, dY, W, bias = matrix(M, K), matrix(M, N), matrix(N, K), matrix(N)
    return {
        "lora_shrink": lambda: (X, A, 0, 1.0, None),
        "lora_shrink, dropout": lambda: (X, A, 3277, 1.05, seed),
        "lora_shrink, dropout, 3 groups": lambda: (X, small(3 * r, K), 3277, 1.05, seed.expand(3)),
        "lora_shrink, dropout, split K": lambda: (X[:64], A, 3277, 1.05, seed),
        "lora_linear": lambda: (X, W, bias, s, B, 2.0, None, False),
        "lora_linear, scale": lambda: (X, W, bias, s, B, 2.0, small(N), True),
        "lora_ds_db": lambda: (dY, B, s, 2.0, True, True),
        "lora_dx": lambda: (dY, W, s, A, mask, None),
        "lora_dx, dropout": lambda: (dY, W, s, A, mask, 1.05),
        "lora_da": lambda: (s, X, mask, None, job.adapter),
        "lora_da, dropout": lambda: (s, X, mask, 1.05, job.adapter),
        "ia3_linear": lambda: (X, W, bias, small(N), False, True),
        "ia3_linear, feedforward": lambda: (X, W, bias, small(K), True, False),
        "ia3_dx_dl": lambda: (dY, W, small(N), dY, False, True, True),
        "ia3_dx_dl, feedforward": lambda: (dY, W, small(K), X, True, True, True),
        "swiglu": lambda: (dY, matrix(M, N)),
        "swiglu_backward": lambda: (dY, matrix(M, N), matrix(M, N), True),
    }[job.name]()


def plan(targets: tuple[str, ...]) -> Iterator[Job]:
    """Every job for these targets."""
    for target in targets:
        for name in NAMES:
            yield Job(target, name)
            yield Job(target, name, F32, F32)
            if name.startswith("lora"):
                yield Job(target, name, BF16, F32)
            if target in FAMILIES:
                yield Job(target, name, F16, F16)
                if name not in _tiles.ELEMENTWISE:
                    yield Job(target, name, F32, F32, tf32=True)
        if target in FAMILIES:
            yield from (Job(target, name, rank=r) for name in FULL for r in RANKS)
            for name in TILED:
                yield from other_tiles(Job(target, name))
            for name in ("lora_linear", "lora_linear, scale"):
                yield from other_tiles(Job(target, name, F32, F32, tf32=True))


def other_tiles(job: Job) -> Iterator[Job]:
    """The job with each configuration that tuning may choose besides the default."""
    configs = list(_tiles.candidates(job.tuned, job.arch, job.bits).values())
    return (replace(job, config=config) for config in configs[1:])
