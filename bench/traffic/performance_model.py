"""The page of `python -m bench.performance_model`: a roofline model of the bytes that bench.traffic counts."""

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
BY_VENDOR = ("ours, vendor's GEMM onto a pass", "ours, vendor's GEMM", "ours, vendor's GEMM, no dropout", *COMPARED[:4])
# Logic operations, comparisons and shifts per element of x in lora_shrink's loop with dropout, as compiled for sm_90:
# 430 of the loop's 679 instructions, for 32 elements per thread. The dropout of other implementations is not counted.
DROPOUT_OPERATIONS = 430 / 32
SM_90 = [gpu for gpu in GPUS if gpu.name in ("H100", "H200")]  # the GPUs whose instructions are counted


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
    header = ("GPU", "bf16, TFLOPS", "measured", "memory, GB/s", "measured", "bf16 a clock", "integers, 10^12/s")
    rows = [
        (g.name, f"{g.peak_bf16:g}", f"{g.bf16:g}", f"{g.peak_bandwidth:g}",
         f"{g.bandwidth:g}{' (assumed)' if g.name == 'B200' else ''}", g.bf16_a_clock, f"{g.integers / 1e12:.2f}")
        for g in GPUS
    ]  # fmt: skip
    return markdown(header, rows)


def step_table(gpu):
    """Forward and backward of one layer: the frozen layer's milliseconds, and each provider's time / frozen layer's."""
    rows = []
    for shape in SHAPES:
        base = seconds(step_of("frozen", shape), gpu, shape)
        ratios = (f"{seconds(step_of(name, shape), gpu, shape) / base:.2f}" for name in COMPARED)
        rows.append((f"{shape.M}x{shape.K}x{shape.N}", f"{1e3 * base:.3f}", *ratios))
    return markdown(("M x K x N", "frozen, ms", *COMPARED), rows)


def op_table(shape):
    """Microseconds of each of our launches, and the resource that bounds it."""
    kernels = [k for k in step_of("ours", shape).kernels if k.name.startswith("_")]
    rows = []
    for kernel in kernels:
        limits = [bounds(kernel, gpu, shape) for gpu in GPUS]
        cells = (f"{1e6 * max(b.values()):.1f} {max(b, key=b.get)}" for b in limits)
        rows.append((f"`{kernel.name.removeprefix('_')}`", f"{kernel.bytes / (1 << 20):.1f}", *cells))
    return markdown(("op", "MiB", *(f"{g.name}, us" for g in GPUS)), rows)


def slack(name, gpu, shape):
    """The fraction by which our two fused products may take longer until the named provider is as fast."""
    ours = step_of("ours, no dropout" if name.endswith("no dropout") else "ours", shape)
    fused = sum(max(bounds(k, gpu, shape).values()) for k in ours.kernels if k.name in ("_lora_linear", "_lora_dx"))
    return (seconds(step_of(name, shape), gpu, shape) - seconds(ours, gpu, shape)) / fused


def slack_table(shape):
    rows = [(name, *(f"{slack(name, gpu, shape):.0%}" for gpu in GPUS)) for name in BY_VENDOR]
    return markdown(("as slow as", *(g.name for g in GPUS)), rows)


def instruction_table(shape):
    return side_products.table(SM_90, step_of("ours", shape), shape)


def integers(shape):
    """Microseconds of the integers of `lora_shrink` on a GPU of sm_90."""
    (kernel,) = (k for k in step_of("ours", shape).kernels if k.name == "_lora_shrink")
    (of_both,) = {f"{1e6 * bounds(kernel, gpu, shape)['integers']:.1f}" for gpu in SM_90}
    return of_both


def page():
    first = SHAPES[0]
    long = Shape(8192, 4096, 4096)
    tables = "\n\n".join(f"### {gpu.name}\n\n{step_table(gpu)}" for gpu in GPUS)
    return f"""# Performance model: predicted, not measured

**Every time on this page is predicted by a model, none is measured.** None of these kernels has run on a GPU. The
predictions follow from public figures of four GPUs and from counted bytes, for comparison with later measurements.
Printed by `make performance-model`.

The time of a kernel is the longest of three times: moving its bytes through memory; its matrix products on tensor cores
(float32 products on CUDA cores, PyTorch's default); and, for `lora_shrink` with dropout, the integer arithmetic of the
random stream. The time of a step is the sum over its kernels. `make traffic` counts the bytes
(bench/results/traffic.md), each operand once per kernel. bf16, r = 16, dropout 0.05, all gradients but the weight's;
our workspaces are those of the tiles for sm_90.

## GPUs

{gpu_table()}

{SOURCES}

The times follow from the measured rates; float32 products have the same share of their peak. "bf16 a clock" are the
operations of one multiprocessor: the peak over this number is the clock times the multiprocessors. A multiprocessor
executes 64 integer operations a clock, and issues 128 instructions of a thread. `lora_shrink` with dropout has
{DROPOUT_OPERATIONS:.1f} integer operations an element of x, counted in the loop of the Triton kernel for sm_90.

## Forward and backward of one layer

The time of a layer / the time of the frozen layer, which runs two GEMMs.

{tables}

"PEFT default" has float32 adapters over a bf16 model; `transformers.Trainer` runs the model under autocast with
`bf16=True`. "addmm style" is Unsloth's order of operations, which has no dropout. The kernels of LoRAFusion
(arXiv:2510.00206) are taken from its source.

## Ours, op by op, at {first}

{op_table(first)}

## Instructions of the side products, at {long}

A float32 adapter beside a bfloat16 activation, as PEFT keeps it, is multiplied as three bfloat16 products; each of the
kernels below then issues more instructions for an element of its long operand than with a bfloat16 adapter. Issue and
memory, in us, are two bounds, and a kernel takes at least the longer one. `lora_shrink` has a third: its integers with
dropout, at half the rate of issue, take {integers(long)} us on both GPUs with Triton's kernel, more than the other
two. The instructions are the most that `make gpu-static` lets the kernels have on sm_90
([budget.py](../bench/static/budget.py)), static counts of the main loop; issue is one instruction a clock of each of a
multiprocessor's four schedulers. The loops of CUDA C++ also hold code that does not run here, for operands of any
strides and for dropout in `lora_ds_db`, so that they issue less than this. Bytes are those of bfloat16 adapters; a
float32 one adds under a hundredth.

{instruction_table(long)}

## How much slower than the vendor's GEMM our fused products may be, at {first}

The tables above assume that the fused products, `lora_linear` and `lora_dx`, reach the rate of the vendor's GEMM; the
same holds for LoRAFusion's fused products. If our fused products take longer by this percentage, our step takes as long
as the provider on the left, which uses the vendor's GEMM.

{slack_table(first)}

## What the model leaves out

- The gaps between kernels, and the minimum time of a kernel, a few microseconds. Both add to the time of providers with
  more launches.
- L2: a kernel may read from L2 what the kernel before has written. This shortens the time of providers with more passes
  over small tensors, most on the H200 and B200; from M = 8192 on the effect is smaller.
- The loss of a shape whose tiles do not fill the last wave. The measured GEMM rates are those of the best shape.
- The arithmetic of other implementations' dropout, which would add to their time.
"""
