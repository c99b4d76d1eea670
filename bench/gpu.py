"""python -m bench.gpu: forward and backward of one layer on a GPU: each of our kernels, PEFT, addmm and unsloth.

Times are measured by GPU events, with a cold L2, interleaved, medians; ratios are within one run. A provider is timed
only if its results agree with float64. Writes gpu.json, gpu.md and gpu.png. The first run also tunes for minutes.
"""

import dataclasses
import functools
import sys
from importlib.util import find_spec

import torch

import pypeft_fast as pf

from .harness import gpu_timing, parsers, report
from .harness.cases import PROVIDERS, SCALING, Case, Operands, gradients, ours, provider
from .harness.check import WrongResult, check
from .harness.targets import at_least, at_most, geometric_mean, ratios
from .harness.timing import bytes_of, flops_of

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
# (M, K, N): projections of a model of eight billion parameters, a projection of a small model, and few tokens.
SHAPES = [(4096, 4096, 4096), (4096, 4096, 14336), (4096, 14336, 4096), (4096, 2048, 2048), (512, 4096, 4096),
          (16, 4096, 4096)]  # fmt: skip
COLUMNS = ("PEFT", "PEFT compiled", "addmm", "ours", "ours cuda", "ours triton", "ours blas")
HEADER = ("case", "frozen us", *COLUMNS, "TFLOP/s")
BESIDE_UNSLOTH = ("frozen", "ours", "unsloth")

for kernel in ("cuda", "triton"):
    provider(f"ours {kernel}", mask="philox")(functools.partial(ours, kernel=kernel))


@provider("unsloth", mask="none")
def unsloth(case, operands):
    """Unsloth's autograd function for one projection, which has no dropout."""
    from unsloth.kernels.fast_lora import LoRA_W

    def step():
        y = LoRA_W.apply(operands.x[None], operands.weight, None, *operands.adapters, SCALING)[0]
        return gradients(y, operands, operands.adapters)

    return step


def all_cases():
    one = [Case(*s, p=p, dtype=BF16, adapter=a) for a in (F32, BF16) for s in SHAPES for p in (0.05, 0.0)]
    ranks = [Case(*SHAPES[0], r=r, dtype=BF16, adapter=F32) for r in (64, 256)]
    others = [Case(*SHAPES[0], dtype=F16, adapter=F32), Case(*SHAPES[3], dtype=F32, adapter=F32)]
    ia3 = [Case(*s, dtype=BF16, adapter=F32, kind="ia3") for s in SHAPES[:2]]
    return one + ranks + others + ia3


def providers_of(case, compiled):
    if case.kind == "ia3":
        return ["frozen", "PEFT IA3", "ours IA3"]
    ours_here = {f"ours {kernel}" for kernel, why in pf.kernels()["lora_shrink"].items() if why == "available"}
    names = [n for n in ("frozen", *COLUMNS) if compiled or n != "PEFT compiled"]
    return [n for n in names if not n.startswith("ours ") or n in ours_here]


def measure(case, names, seconds, timer):
    """(the measurements of the case, [the error of each provider that is wrong and therefore not timed])."""
    torch.compiler.reset()  # otherwise torch.compile falls back to eager after a few shapes of one function
    operands, steps, wrong = Operands(case), {}, []
    for name in names:
        # PyTorch's mask depends on the launch of its kernel, so providers with this mask are checked without dropout.
        checked = case if PROVIDERS[name].mask == "philox" else dataclasses.replace(case, p=0.0)
        try:
            check(name, PROVIDERS[name], checked, operands)
        except WrongResult as fault:
            wrong.append(str(fault))
            continue
        steps[name] = PROVIDERS[name].build(case, operands)
    fields = dataclasses.asdict(case) | {"dtypes": case.dtypes, "dtype": str(case.dtype), "adapter": str(case.adapter)}
    return {
        "case": fields,
        "name": str(case).rpartition(" ")[0],
        "seconds": timer(steps, seconds) if steps else {},
        "bytes": bytes_of(operands.x, operands.weight, operands.dY, *operands.adapters),
        "flops": flops_of(operands.x, operands.weight, operands.adapters),
    }, wrong


def row(result):
    """The case, the frozen layer's microseconds, each provider's time / the frozen layer's, and TFLOP/s of ours."""
    times = {name.removesuffix(" IA3"): t for name, t in result["seconds"].items()}
    frozen = times.get("frozen")
    over = [f"{times[n] / frozen:.2f}" if n in times and frozen else "" for n in COLUMNS]
    speed = f"{result['flops'] / times['ours'] / 1e12:.1f}" if "ours" in times else ""
    return result["name"], f"{1e6 * frozen:.1f}" if frozen else "", *over, speed


def target_rows(results):
    """[(what, measured, target, verdict)]: our time / the frozen layer's, and the speed-up over each other provider."""
    rows = []
    for dtypes in ("bfloat16+float32", "bfloat16"):
        for p in (0.05, 0.0):
            wanted = {"kind": "lora", "r": 16, "dtypes": dtypes, "p": p}
            if over := ratios(results, "ours", "frozen", **wanted):
                rows.append(at_most(f"time / frozen layer, {dtypes}, p={p:g}, mean", geometric_mean(over), 1.15))
            for other in ("PEFT", "PEFT compiled", "addmm", "unsloth"):
                if faster := ratios(results, other, "ours", **wanted):
                    rows.append(at_least(f"speed-up over {other}, {dtypes}, p={p:g}, worst", min(faster), 1.0))
    return rows


def prepare():
    """Makes the GPU the default device for new tensors. SystemExit if there is no GPU."""
    if not torch.cuda.is_available():
        sys.exit(
            f"bench.gpu needs a GPU, and PyTorch {torch.__version__} sees none: install the driver and a PyTorch built "
            "for it. The layer is timed on the CPU by `make bench`; `make gpu-static` compiles the GPU kernels here"
        )
    torch.set_default_device("cuda")


def main(arguments=None, timer=gpu_timing.interleaved, describe=gpu_timing.machine):
    parser = parsers.of_layer("gpu", __doc__, seconds=2.0, example="4096x2048x2048")
    parser.add_argument("--no-compiled", action="store_true", help="do not time torch.compile of PEFT's layer")
    options = parser.parse_args(arguments)
    prepare()
    cases = parsers.chosen(parser, all_cases(), options.only)
    about, results, wrong = describe(), [], []
    passes = [(case, providers_of(case, not options.no_compiled)) for case in cases]
    if find_spec("unsloth") is not None:  # imported last: Unsloth patches PEFT and transformers on import
        passes += [
            (case, BESIDE_UNSLOTH) for case in cases if case.kind == "lora" and case.p == 0 and case.dtype != F32
        ]
    line = report.aligned(HEADER, map(str, cases))
    print(report.headline(about), line(HEADER), sep="\n")
    for case, names in passes:
        result, faults = measure(case, names, options.seconds, timer)
        results.append(result)
        wrong += faults
        print(line(row(result)), *faults, sep="  ", flush=True)
    targets = target_rows(results)
    tables = [(report.TARGET_HEADER, targets), (HEADER, [row(r) for r in results])]
    data = {"machine": about, "results": results, "targets": targets, "wrong": wrong}
    report.write(options.output, "gpu", data, tables)
    shown = [r for r in results if r["case"]["kind"] == "lora" and r["case"]["p"] and "frozen" in r["seconds"]]
    names = [n for n in COLUMNS if any(n in r["seconds"] for r in shown)]
    if shown and names:
        report.bars(options.output / "gpu.png", report.by_dtype(shown, names), "time / frozen layer: dropout 0.05")
    print(report.verdicts(targets))
    if wrong:
        sys.exit("not timed, because wrong:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
