"""python -m bench.ranks: LoRA and DoRA with ranks 1 to 1024 and 1 to 4096 rows, compared with eager PyTorch.

Forward and backward of one layer, one thread, CPU time of the process. Eager PyTorch: F.linear, addition, and for DoRA
the norm of the whole sum. There is no dropout, which takes eager PyTorch far longer than our kernels. The C library
keeps freed memory for both. Writes ranks.json, .md and .png.
"""

import math

import torch
import torch.nn.functional as F

import pypeft_fast as pf

from .harness import parsers, report
from .harness.targets import at_least
from .harness.timing import interleaved, keep_freed_memory, machine

SCALING = 2.0
ROWS, RANKS = (1, 16, 64, 256, 1024, 4096), (1, 16, 64, 256, 1024)
DTYPES = {
    "float32": (torch.float32, torch.float32),
    "bfloat16+float32": (torch.bfloat16, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
}
SHORT = 2e-3  # seconds: steps shorter than this are repeated in one measurement
HEADER = ("case", "frozen ms", "eager ms", "ours ms", "eager / ours")


class Case:
    """One layer K -> N with its operands, and the steps `frozen`, `eager` and `ours`."""

    def __init__(self, method, dtypes, M, r, K, N):
        self.name = f"{method} {dtypes} {M} rows r={r}"
        self.method, self.dtypes, self.M, self.r = method, dtypes, M, r
        dtype, adapter = DTYPES[dtypes]
        torch.manual_seed(0)
        self.x, self.dY = torch.randn(M, K).to(dtype).requires_grad_(), torch.randn(M, N).to(dtype)
        self.weight = (torch.randn(N, K) / K**0.5).to(dtype)
        A, B = torch.randn(r, K) / K**0.5, torch.randn(N, r) / r**0.5
        made = [A, B] if method == "LoRA" else [A, B, torch.rand(N) + 0.5]
        self.adapters = [t.to(adapter).requires_grad_() for t in made]

    def __str__(self):
        return self.name

    def gradients(self, y, of):
        return torch.autograd.grad(y, of, self.dY)

    def frozen(self):
        return self.gradients(F.linear(self.x, self.weight), [self.x])

    def eager(self):
        A, B, *magnitude = self.adapters
        base = F.linear(self.x, self.weight)
        low = F.linear(F.linear(self.x.to(A.dtype), A), B) * SCALING
        y = base + low
        if magnitude:
            with torch.no_grad():
                norm = torch.linalg.vector_norm(self.weight + (SCALING * (B @ A)).to(base.dtype), dim=1)
            y = (magnitude[0] / norm) * y
        return self.gradients(y.to(base.dtype), [self.x, *self.adapters])

    def ours(self):
        function = pf.lora_linear if self.method == "LoRA" else pf.dora_linear
        return self.gradients(function(self.x, self.weight, *self.adapters, scaling=SCALING), [self.x, *self.adapters])


def repeated(step, times):
    def steps():
        for _ in range(times):
            step()

    return steps


def measure(case, seconds):
    """{"frozen", "eager", "ours": seconds of a step}"""
    steps = {"frozen": case.frozen, "eager": case.eager, "ours": case.ours}
    once = interleaved(steps, seconds=0, least=1)
    times = max(1, math.ceil(SHORT / max(1e-6, once["frozen"])))
    took = interleaved({name: repeated(step, times) for name, step in steps.items()}, seconds=seconds)
    return {name: t / times for name, t in took.items()}


def row(case, times):
    frozen, eager, ours = (times[name] for name in ("frozen", "eager", "ours"))
    return str(case), f"{1e3 * frozen:.3f}", f"{1e3 * eager:.3f}", f"{1e3 * ours:.3f}", f"{eager / ours:.2f}"


def main(arguments=None):
    parser = parsers.of_layer("ranks", __doc__, seconds=1.0, example="bfloat16")
    parser.add_argument("--shape", type=int, nargs=2, default=(1024, 1024), help="inputs and outputs (1024 1024)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    cases = [(m, d, M, r) for m in ("LoRA", "DoRA") for d in DTYPES for M in ROWS for r in RANKS]
    names = parsers.chosen(parser, [Case(*case, 1, 1) for case in cases], options.only)
    about, results = machine(), []
    line = report.aligned(HEADER, [str(case) for case in names])
    print(report.headline(about), line(HEADER), sep="\n")
    for each in names:
        case = Case(each.method, each.dtypes, each.M, each.r, *options.shape)
        results.append((case.name, measure(case, options.seconds)))
        print(line(row(*results[-1])), flush=True)
    ratios = {name: times["eager"] / times["ours"] for name, times in results}
    slowest = min(ratios, key=ratios.get)
    targets = [at_least(f"speed-up over eager PyTorch, worst ({slowest})", ratios[slowest], 1.0)]
    data = {"machine": about, "shape": list(options.shape), "results": dict(results), "targets": targets}
    report.write(options.output, "ranks", data, [(report.TARGET_HEADER, targets), (HEADER, [row(*r) for r in results])])
    labels = [name for name, _ in results]
    shown = {name: [times[name] / times["frozen"] for _, times in results] for name in ("eager", "ours")}
    report.bars(options.output / "ranks.png", {"time / frozen layer": (labels, shown)}, "time / frozen layer")
    print(report.verdicts(targets))


if __name__ == "__main__":
    main()
