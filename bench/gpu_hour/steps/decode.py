"""A layer's forward pass for few rows: frozen, PEFT, eager, and ours with each kernel.

Each is timed replayed from a CUDA graph, and without one, where the host decides: a call's time on the clock.
"""

import sys
import time
from importlib.util import find_spec

import torch
import torch.nn.functional as F

import pypeft_fast as pf

from ...harness import timing
from ...harness.cases import SCALING, Case, Operands, peft_layer
from .. import device, found
from ..device import BF16, F32

ROWS = device.sized((1, 8, 16), (1,))
SHAPES = device.sized(((4096, 4096), (4096, 14336)), ((24, 40),))
KERNELS = ("cuda", "triton", "blas")
CALLS = device.sized(50, 1)  # in a row without a graph


def formula(x, weight, A, B):
    return F.linear(x, weight) + SCALING * (x.to(A.dtype) @ A.t() @ B.t()).to(x.dtype)


def forced(kernel, operands):
    A, B = operands.adapters

    def step():
        with pf.using(kernel):
            return pf.lora_linear(operands.x, operands.weight, A, B, scaling=SCALING)

    return step


def steps_of(case, operands):
    """{name: a function without arguments that returns y}"""
    A, B = operands.adapters
    steps = {
        "frozen": lambda: F.linear(operands.x, operands.weight),
        "ours": lambda: pf.lora_linear(operands.x, operands.weight, A, B, scaling=SCALING),
        "eager": lambda: formula(operands.x, operands.weight, A, B),
    }
    if find_spec("peft") is not None:
        layer = peft_layer(case, operands).eval()
        steps["PEFT"] = lambda: layer(operands.x)
    there = [pf.kernels()[op] for op in ("lora_shrink", "lora_linear")]
    return steps | {f"ours {k}": forced(k, operands) for k in KERNELS if all(of.get(k) == "available" for of in there)}


def captured(step):
    """(a function that replays the step, its static result); eager in a rehearsal."""
    if device.REHEARSED:
        return step, step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiling and tuning on first use must not be captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step()
    graph.replay()
    return graph.replay, y


def fault_of(name, y, operands):
    """The fault of a result, or None: the error may be at most twice eager PyTorch's, plus one ulp of the largest
    value."""
    tensors = (operands.x, operands.weight, *(t for t in operands.adapters))
    if name == "frozen":
        tensors = (*tensors[:2], *(torch.zeros_like(t) for t in tensors[2:]))
    truth = formula(*(t.double() for t in tensors))
    error, eager = ((t.double() - truth).abs().max().item() for t in (y, formula(*tensors)))
    bound = 2 * eager + torch.finfo(y.dtype).eps * truth.abs().max().item()
    return None if error <= bound else f"{name} is off by {error:.3g}, more than {bound:.3g}"


def launched(step):
    """A function that calls the step CALLS times and waits for the GPU."""

    def calls():
        for _ in range(CALLS):
            step()
        device.synchronize()

    return calls


@torch.no_grad()
def measured(case):
    """({name: seconds} from graphs, {name: seconds} without, [fault of each provider that is not timed])"""
    operands, replays, calls, wrong = Operands(case), {}, {}, []
    for name, step in steps_of(case, operands).items():
        replay, y = captured(step)
        fault = fault_of(name, y, operands)
        if fault is None:
            replays[name], calls[name] = replay, launched(step)
        else:
            wrong.append(f"{case}: {fault}")
    without = timing.interleaved(calls, time.perf_counter, seconds=0.2, least=device.sized(4, 1))
    return device.interleaved(replays, 0.3), {name: seconds / CALLS for name, seconds in without.items()}, wrong


def main():
    device.prepare()
    results, wrong = [], []
    for K, N in SHAPES:
        for M in ROWS:
            for adapter in device.sized((F32, BF16), (F32,)):
                case = Case(M, K, N, p=0.0, dtype=BF16, adapter=adapter)
                seconds, without, faults = measured(case)
                times = {"seconds": seconds, "without_graph": without}
                results.append({"case": [M, K, N, case.r], "dtypes": case.dtypes} | times)
                wrong += faults
                for how, its in times.items():
                    print(case, how, {name: f"{1e6 * s:.1f} us" for name, s in its.items()}, *faults, flush=True)
                found.keep(results=results, wrong=wrong, line=f"{len(results)} cases")
    if wrong:
        sys.exit(f"{len(wrong)} not timed, because wrong: {wrong[0]}")


if __name__ == "__main__":
    main()
