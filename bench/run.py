"""python -m bench.run: forward and backward of one LoRA layer, ours against eager PyTorch and PEFT, on this machine.

One thread, CPU time of the process, the layers interleaved, medians; ratios are within one run. A case is timed only
after its results agree with float64.
"""

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path

import peft
import torch
import torch.nn.functional as F

import pypeft_fast as pf

from .cases import CASES, layers


def step(layer, lora_A, lora_B, x, dY):
    """y, dX, dA, dB of one forward and backward pass."""
    y = layer(x)
    return y.detach(), *torch.autograd.grad(y, (x, lora_A, lora_B), dY)


def truth(layer, lora_A, lora_B, x, dY):
    """The same in float64, without dropout."""
    wide = [t.detach().double().requires_grad_() for t in (x, lora_A, lora_B)]
    y = F.linear(wide[0], layer.weight.double(), layer.bias.double())
    y = y + layer.scaling * (wide[0] @ wide[1].t() @ wide[2].t())
    return y.detach(), *torch.autograd.grad(y, wide, dY.double())


def errors(results, expected):
    return [(r.double() - e).abs().max().item() for r, e in zip(results, expected, strict=True)]


def check(contestants, x, dY):
    """Without dropout: at most twice eager's error against float64, plus one ulp of the largest value.

    With dropout: the automatic choice of kernels agrees with the reference on the same mask, within the same bound.
    """
    ours, eager = contestants["ours"], contestants["eager"]
    for layer, *_ in contestants.values():
        layer.eval()
    expected = truth(*ours, x, dY)
    allowed = [
        2 * error + torch.finfo(e.dtype).eps * e.abs().max().item()
        for error, e in zip(errors(step(*eager, x, dY), expected), step(*eager, x, dY), strict=True)
    ]
    compared = [(step(*ours, x, dY), expected)]
    for layer, *_ in contestants.values():
        layer.train()
    torch.manual_seed(1)
    with pf.using("reference"):
        reference = step(*ours, x, dY)
    torch.manual_seed(1)
    compared.append((step(*ours, x, dY), reference))
    for results, wanted in compared:
        for name, error, bound in zip(("y", "dX", "dA", "dB"), errors(results, wanted), allowed, strict=True):
            if not error <= bound:
                raise SystemExit(f"{name} is off by {error:.3g}, more than {bound:.3g}: no speed is reported")


def milliseconds(contestants, x, dY, repeats):
    """{name: median CPU milliseconds of a step}; every repeat runs all of them, each time in another order."""
    times = {name: [] for name in contestants}
    names = list(contestants)
    for i in range(repeats + 2):
        for name in names[i % 3 :] + names[: i % 3]:
            start = time.process_time()
            step(*contestants[name], x, dY)
            times[name].append(time.process_time() - start)
    return {name: 1e3 * statistics.median(t[2:]) for name, t in times.items()}


def machine():
    cpuinfo = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
    model = next((v.strip() for k, v in fields.items() if k.strip() == "model name"), platform.machine())
    versions = f"pypeft_fast {pf.__version__}, torch {torch.__version__}, peft {peft.__version__}"
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, one thread, {versions}"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="steps of each layer in each case (default 15)")
    repeats = parser.parse_args(arguments).repeats
    if repeats < 1:
        parser.error(f"--repeats {repeats}: at least 1")
    torch.set_num_threads(1)
    print(f"{machine()}\nmedian of {repeats} steps, forward and backward, CPU milliseconds\n")
    print(f"{'M x K x N':42}{'eager':>9}{'PEFT':>9}{'ours':>9}{'eager/ours':>12}{'PEFT/ours':>11}  kernels")
    for case in CASES:
        torch.manual_seed(0)
        contestants = layers(case)
        x, dY = torch.randn(case.M, case.K, dtype=case.dtype), torch.randn(case.M, case.N, dtype=case.dtype)
        x.requires_grad_()
        check(contestants, x, dY)
        with pf.recording() as ran:
            step(*contestants["ours"], x, dY)
        ms = milliseconds(contestants, x, dY, repeats)
        ratios = f"{ms['eager'] / ms['ours']:12.2f}{ms['PEFT'] / ms['ours']:11.2f}"
        kernels = " ".join(dict.fromkeys(kernel for _, kernel in ran))
        print(f"{case!s:42}{''.join(f'{t:9.2f}' for t in ms.values())}{ratios}  {kernels}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
