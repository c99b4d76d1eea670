"""python -m bench.run: forward and backward of one layer on this CPU: ours, PEFT and the frozen layer.

One thread: CPU time of the process. Two threads: wall time. Rounds are interleaved, times are medians, ratios are
within one run. A provider is timed only if its results agree with float64. Writes layer.json, layer.md, layer.png.
"""

import dataclasses
import sys

import torch

from .harness import parsers, report
from .harness.cases import PROVIDERS, Operands, all_cases, providers_of
from .harness.check import WrongResult, check
from .harness.targets import layer_rows
from .harness.timing import bytes_of, clock_of, flops_of, interleaved, machine


def measure(case, seconds, compiled=False):
    """{case, seconds: {provider: median}, bytes, flops}; WrongResult if a provider's results are wrong."""
    torch.set_num_threads(case.threads)
    operands, steps = Operands(case), {}
    for name in providers_of(case, compiled):
        provider = PROVIDERS[name]
        checked = dataclasses.replace(case, p=0.0) if provider.mask == "compiled" else case
        check(name, provider, checked, operands)
        steps[name] = provider.build(case, operands)
    fields = dataclasses.asdict(case) | {"dtypes": case.dtypes, "dtype": str(case.dtype), "adapter": str(case.adapter)}
    return {
        "case": fields,
        "name": str(case),
        "seconds": interleaved(steps, clock_of(case.threads), seconds),
        "bytes": bytes_of(operands.x, operands.weight, operands.dY, *operands.adapters),
        "flops": flops_of(operands.x, operands.weight, operands.adapters),
    }


def row(result):
    """The case, the frozen layer's milliseconds, each provider's time / the frozen layer's, and GFLOP/s of ours."""
    times = result["seconds"]
    own = times.get("ours", times.get("ours IA3"))
    over = [f"{times[n] / times['frozen']:.2f}" if n in times else "" for n in COLUMNS]
    if "ours IA3" in times:
        over[0], over[COLUMNS.index("ours")] = (f"{times[n] / times['frozen']:.2f}" for n in ("PEFT IA3", "ours IA3"))
    return result["name"], f"{1e3 * times['frozen']:.2f}", *over, f"{result['flops'] / own / 1e9:.0f}"


COLUMNS = ("PEFT", "PEFT compiled", "addmm", "ours", "ours p=0", "ours cpu", "ours blas")
HEADER = ("case", "frozen ms", *COLUMNS, "GFLOP/s")


def plot(results, path):
    wanted = {"kind": "lora", "r": 16, "threads": 1}
    shown = [r for r in results if r["case"]["p"] and all(r["case"][k] == v for k, v in wanted.items())]
    title = "time / frozen layer: r=16, dropout 0.05, one thread"
    report.bars(path, report.by_dtype(shown, ("PEFT", "addmm", "ours")), title)


def main(arguments=None):
    parser = parsers.of_layer("run", __doc__, seconds=1.5, example="512x576x576")
    parser.add_argument(
        "--compiled", action="store_true", help="also time torch.compile of PEFT's layer, which takes minutes more"
    )
    options = parser.parse_args(arguments)
    cases = parsers.chosen(parser, all_cases(), options.only)
    results, about = [], machine()
    line = report.aligned(HEADER, map(str, cases))
    print(report.headline(about), line(HEADER), sep="\n")
    for case in cases:
        try:
            results.append(measure(case, options.seconds, options.compiled))
        except WrongResult as wrong:
            sys.exit(f"{wrong}: no speed is reported")
        print(line(row(results[-1])), flush=True)
    targets = layer_rows(results)
    tables = [(report.TARGET_HEADER, targets), (HEADER, [row(r) for r in results])]
    report.write(options.output, "layer", {"machine": about, "results": results, "targets": targets}, tables)
    plot(results, options.output / "layer.png")
    print(report.verdicts(targets))


if __name__ == "__main__":
    main()
