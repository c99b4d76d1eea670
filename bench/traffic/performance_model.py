"""The page that `python -m bench.performance_model` prints: a roofline's times from the bytes that are counted here."""

import functools

from ..harness.gpus import GPUS, SOURCES
from ..harness.targets import markdown
from . import eager, side_products
from .count import Shape
from .providers import LORA_PROVIDERS

SHAPES = [Shape(M, K, N) for M in (4096, 8192) for K, N in ((4096, 4096), (4096, 14336), (14336, 4096))]
COMPARED = (
    "PEFT default, bf16 autocast", "PEFT default, no autocast", "PEFT bf16 adapters", "addmm style, no dropout",
    "LoRAFusion", "ours", "ours, no dropout",
)  # fmt: skip
BY_VENDOR = ("ours, vendor's GEMM", "ours, vendor's GEMM, no dropout", *COMPARED[:4])
# Logic, comparisons and shifts for each element of x in lora_shrink's loop with dropout, as compiled for sm_90: 430 of
# the loop's 679 instructions, for 32 elements a thread. The others' dropout is not charged for its own.
DROPOUT_OPERATIONS = 430 / 32


def bounds(kernel, gpu, shape):
    """Seconds that each resource of the GPU needs for one kernel, by name; the longest is the kernel's time."""
    share = gpu.bf16 / gpu.peak_bf16
    rate = gpu.bf16 if kernel.unit == "bf16" else gpu.peak_fp32 * share
    drops = kernel.name == "_lora_shrink" and kernel.written["MK"] > 0
    return {
        "memory": kernel.bytes / (gpu.bandwidth * 1e9),
        "products": kernel.flops / (rate * 1e12),
        "integers": DROPOUT_OPERATIONS * shape.M * shape.K / gpu.integers if drops else 0.0,
    }


def seconds(step, gpu, shape):
    return sum(max(bounds(kernel, gpu, shape).values()) for kernel in step.kernels)


@functools.cache
def step_of(name, shape):
    return eager.frozen(shape) if name == "frozen" else LORA_PROVIDERS[name](shape)


def gpu_table():
    header = ("GPU", "bf16, TFLOPS", "measured", "memory, GB/s", "measured")
    rows = [
        (g.name, f"{g.peak_bf16:g}", f"{g.bf16:g}", f"{g.peak_bandwidth:g}",
         f"{g.bandwidth:g}{' (assumed)' if g.name == 'B200' else ''}")
        for g in GPUS
    ]  # fmt: skip
    return markdown(header, rows)


def step_table(gpu):
    """Forward and backward of one layer: the frozen layer's milliseconds, then each provider's time over that."""
    rows = []
    for shape in SHAPES:
        base = seconds(step_of("frozen", shape), gpu, shape)
        ratios = (f"{seconds(step_of(name, shape), gpu, shape) / base:.2f}" for name in COMPARED)
        rows.append((f"{shape.M}x{shape.K}x{shape.N}", f"{1e3 * base:.3f}", *ratios))
    return markdown(("M x K x N", "frozen, ms", *COMPARED), rows)


def op_table(shape):
    """Microseconds of each launch of ours, and what bounds it."""
    kernels = [k for k in step_of("ours", shape).kernels if k.name.startswith("_")]
    rows = []
    for kernel in kernels:
        limits = [bounds(kernel, gpu, shape) for gpu in GPUS]
        cells = (f"{1e6 * max(b.values()):.1f} {max(b, key=b.get)}" for b in limits)
        rows.append((f"`{kernel.name.removeprefix('_')}`", f"{kernel.bytes / (1 << 20):.1f}", *cells))
    return markdown(("op", "MiB", *(f"{g.name}, us" for g in GPUS)), rows)


def slack(name, gpu, shape):
    """How much longer our two fused products may take before a route over the vendor's GEMM is as fast, as a share."""
    ours = step_of("ours, no dropout" if name.endswith("no dropout") else "ours", shape)
    fused = sum(max(bounds(k, gpu, shape).values()) for k in ours.kernels if k.name in ("_lora_linear", "_lora_dx"))
    return (seconds(step_of(name, shape), gpu, shape) - seconds(ours, gpu, shape)) / fused


def slack_table(shape):
    rows = [(name, *(f"{slack(name, gpu, shape):.0%}" for gpu in GPUS)) for name in BY_VENDOR]
    return markdown(("as slow as", *(g.name for g in GPUS)), rows)


def instruction_table(shape):
    gpus = [gpu for gpu in GPUS if gpu.name in ("H100", "H200")]  # of sm_90, whose instructions are counted
    return side_products.table(gpus, step_of("ours", shape), shape)


def page():
    first = SHAPES[0]
    long = Shape(8192, 4096, 4096)
    tables = "\n\n".join(f"### {gpu.name}\n\n{step_table(gpu)}" for gpu in GPUS)
    return f"""# Performance model: predicted, not measured

**Every time on this page is a model's, none is measured.** None of these kernels has run on a GPU. The page says what
public figures of four GPUs and counted bytes predict, so that a measurement can be held against it. Printed by
`make performance-model`.

A kernel takes as long as the slowest of: its bytes through memory, its matrix products on tensor cores (float32 ones
on CUDA cores, as PyTorch's default asks), and, for `lora_shrink` with dropout, the integer arithmetic of the random
stream. A step is the sum of its kernels. Bytes are counted by `make traffic` (bench/results/traffic.md): each operand
once a kernel. bf16, r = 16, dropout 0.05, all gradients but the weight's; our workspaces are those of sm_90's tiles.

## GPUs

{gpu_table()}

{SOURCES}

## Forward and backward of one layer

Time over the frozen layer's, that is, over its two GEMMs.

{tables}

"PEFT default" keeps float32 adapters over a bf16 model; autocast is what `transformers.Trainer` does with `bf16=True`.
"addmm style" is Unsloth's order of operations, which has no dropout. LoRAFusion (arXiv:2510.00206) is read off its
source.

## Ours, op by op, at {first}

{op_table(first)}

## Instructions of the side products, at {long}

A float32 adapter beside a bfloat16 activation, as PEFT keeps it, is multiplied as three bfloat16 products; each of the
kernels below then issues more instructions for an element of its long operand than with a bfloat16 adapter. A kernel
takes the longer of issue and memory, in us. The instructions are the most that `make gpu-static` lets Triton's kernels
have on sm_90 ([budget.py](../bench/static/budget.py)), static counts of the main loop; issue is one instruction a clock
of each of a multiprocessor's four schedulers. Bytes are those of bfloat16 adapters; a float32 one adds under a
hundredth.

{instruction_table(long)}

## How much slower than the vendor's GEMM our fused products may be, at {first}

The tables above assume that `lora_linear` and `lora_dx`, and LoRAFusion's like, reach the vendor's rate. With fused
products that take this much longer, ours is as slow as what stands on the left, which uses the vendor's GEMM.

{slack_table(first)}

## What the model leaves out

- The gaps between kernels and the few microseconds that the smallest takes: they weigh on whoever launches more.
- L2: a tensor that the kernel before has left there need not come from memory. That favours whoever makes more passes
  over small tensors, most on the H200 and B200; from M = 8192 on it matters less.
- What a shape loses to tiles that do not fill the last wave. The measured GEMM rates are those of the best shape.
- The arithmetic of the others' dropout, in their favour.
"""
