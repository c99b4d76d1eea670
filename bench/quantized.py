"""python -m bench.quantized: LoRA over quantised weights, compared with bfloat16 and with PEFT over bitsandbytes.

A step is forward and backward of one layer, r=16, dropout 0.05, float32 adapters over bfloat16, one thread, CPU time of
the process. Decoding is one row without gradients. Before timing, every result is compared with that of the decoded
weight. Writes quantized.json, .md and .png.
"""

import functools
import warnings

import torch
import torch.nn.functional as F

import pypeft_fast as pf

from .harness import parsers, report
from .harness.targets import at_least, at_most
from .harness.timing import interleaved, machine

RANK, DROPOUT, SCALING = 16, 0.05, 2.0
BF16 = torch.bfloat16
FORMATS = ("nf4", "nf4, flat", "fp4", "int8", "fp8")  # flat: scales in float32
STEPS = [(384, 896, 896), (512, 2048, 2048), (512, 896, 4864), (2048, 896, 4864), (512, 4096, 4096)]
DECODED = (1, 4096, 14336)
HEADER = ("case", "frozen bf16 ms", "ours bf16 ms", "ours ms", "PEFT over bitsandbytes ms", "ours / ours bf16",
          "PEFT / ours")  # fmt: skip


class Case:
    """One layer K -> N in a format, and its steps {provider: function}."""

    def __init__(self, format, M, K, N):
        self.format, self.M, self.K, self.N = format, M, K, N

    def __str__(self):
        return f"{self.format} {self.M}x{self.K}x{self.N}{' decode' if self.M == 1 else ''}"

    def make(self):
        torch.manual_seed(0)
        self.weight = (torch.randn(self.N, self.K) / self.K**0.5).to(BF16)
        name, _, flat = self.format.partition(", ")
        self.frozen = pf.quantize(self.weight, name, nested=not flat)
        self.x, self.dY = torch.randn(self.M, self.K).to(BF16).requires_grad_(), torch.randn(self.M, self.N).to(BF16)
        A, B = torch.randn(RANK, self.K) / self.K**0.5, torch.randn(self.N, RANK) / RANK**0.5
        self.adapters = [A.requires_grad_(), B.requires_grad_()]
        steps = {
            "frozen bf16": lambda: self.step(F.linear(self.x, self.weight), [self.x]),
            "ours bf16": lambda: self.ours(self.weight),
            "ours": lambda: self.ours(self.frozen),
        }
        peft = self.peft(name, nested=not flat)
        if peft is not None:
            steps["PEFT"] = lambda: self.step(peft(self.x), [self.x, *self.adapters])
        return {name: self.in_mode(step) for name, step in steps.items()}

    def in_mode(self, step):
        @functools.wraps(step)
        def run():
            with torch.set_grad_enabled(self.M > 1):
                return step()

        return run

    def step(self, y, of):
        return torch.autograd.grad(y, of, self.dY) if self.M > 1 else y

    def ours(self, weight, dropout_p=DROPOUT):
        p = dropout_p if self.M > 1 else 0.0
        return self.step(
            pf.lora_linear(self.x, weight, *self.adapters, scaling=SCALING, dropout_p=p), [self.x, *self.adapters]
        )

    def peft(self, name, nested):
        """PEFT's layer over bitsandbytes' layer with the same codes and adapters; None if bitsandbytes lacks the
        format."""
        from peft import LoraConfig
        from peft.tuners.lora import bnb

        warnings.filterwarnings("ignore", category=UserWarning, module="peft|bitsandbytes")
        base = self.bitsandbytes(name, nested)
        if base is None:
            return None
        kind = bnb.Linear8bitLt if name == "int8" else bnb.Linear4bit
        config = LoraConfig(r=RANK, lora_alpha=RANK * SCALING, lora_dropout=DROPOUT)
        layer = kind(base, "default", config=config, r=RANK, lora_alpha=RANK * SCALING)
        layer.lora_A["default"].weight, layer.lora_B["default"].weight = map(torch.nn.Parameter, self.adapters)
        self.adapters = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        return layer.train(self.M > 1)

    def bitsandbytes(self, name, nested):
        import bitsandbytes

        options = dict(bias=False)
        if name == "int8":
            base = bitsandbytes.nn.Linear8bitLt(self.K, self.N, has_fp16_weights=False, **options)
            base.weight = bitsandbytes.nn.Int8Params(self.weight, requires_grad=False, has_fp16_weights=False)
        elif name in ("nf4", "fp4"):
            base = bitsandbytes.nn.Linear4bit(
                self.K, self.N, compute_dtype=BF16, compress_statistics=nested, quant_type=name, **options
            )
            base.weight = bitsandbytes.nn.Params4bit(
                self.weight, requires_grad=False, compress_statistics=nested, quant_type=name
            )
        else:
            return None
        return base.to("cpu")

    def check(self):
        """AssertionError if a result differs by more than rounding from the result with the decoded weight."""
        for got, wanted in zip(self.outputs(self.frozen), self.outputs(self.frozen.dequantize()), strict=True):
            error = (got - wanted).float().norm() / wanted.float().norm()
            assert error < 0.01, f"{self}: {error:.3g} from the decoded weight"

    def outputs(self, weight):
        found = self.in_mode(lambda: self.ours(weight, 0.0))()
        return found if isinstance(found, tuple) else (found,)


def row(case, times):
    shown = [
        f"{1e3 * times[name]:.2f}" if name in times else "" for name in ("frozen bf16", "ours bf16", "ours", "PEFT")
    ]
    peft = f"{times['PEFT'] / times['ours']:.2f}" if "PEFT" in times else ""
    return str(case), *shown, f"{times['ours'] / times['ours bf16']:.3f}", peft


def target_rows(results):
    """The rows of the targets, for the steps over nf4 and for decoding."""
    nf4 = {str(case): times for case, times in results if case.format == "nf4" and case.M > 1}
    found = []
    if nf4:
        over = {name: times["ours"] / times["ours bf16"] for name, times in nf4.items()}
        slowest = max(over, key=over.get)
        found.append(at_most(f"nf4 step over our bfloat16 step, worst ({slowest})", over[slowest], 1.05))
        beside = {name: times["PEFT"] / times["ours"] for name, times in nf4.items()}
        slowest = min(beside, key=beside.get)
        found.append(at_least(f"nf4 speed-up over PEFT with bitsandbytes, worst ({slowest})", beside[slowest], 1.5))
    for case, times in results:
        if case.format == "nf4" and case.M == 1:
            ratio = times["ours"] / times["frozen bf16"]
            found.append(at_most(f"{case} with LoRA over bfloat16's frozen layer", ratio, 0.5))
    return found


def main(arguments=None):
    parser = parsers.of_layer("quantized", __doc__, seconds=4.0, example="nf4")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = [Case(format, *shape) for format in FORMATS for shape in (*STEPS, DECODED)]
    about, results = machine(), []
    chosen = parsers.chosen(parser, cases, options.only)
    line = report.aligned(HEADER, [str(case) for case in chosen])
    print(report.headline(about), line(HEADER), sep="\n")
    for case in chosen:
        steps = case.make()
        case.check()
        results.append((case, interleaved(steps, seconds=options.seconds)))
        print(line(row(*results[-1])), flush=True)
        vars(case).update(weight=None, frozen=None, adapters=None, x=None, dY=None)  # frees memory for the next case
    targets = target_rows(results)
    data = {"machine": about, "results": {str(case): times for case, times in results}, "targets": targets}
    tables = [(report.TARGET_HEADER, targets), (HEADER, [row(*r) for r in results])]
    report.write(options.output, "quantized", data, tables)
    shown = {"ours": [times["ours"] / times["ours bf16"] for _, times in results]}
    labels = [str(case) for case, _ in results]
    report.bars(options.output / "quantized.png", {"time / ours bfloat16": (labels, shown)}, "time / ours bfloat16")
    print(report.verdicts(targets))


if __name__ == "__main__":
    main()
