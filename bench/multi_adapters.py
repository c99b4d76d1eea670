"""python -m bench.multi_adapters: rows of several adapters in one batch, beside the same rows of one adapter.

A training step is y, dX, dA and dB; decoding is y alone, without a graph. One thread, CPU time, cases interleaved; each
row of the table is a median and its ratio to one adapter's, from the same run.
"""

import argparse
import time

import torch

import pypeft_fast as pf

from .harness.timing import interleaved, machine

K = N = 2048
R, P, SCALING = 16, 0.05, 2.0
# (what, rows, adapters, whether it trains, the most that it may cost over one adapter's)
CASES = (("train", 512, 8, True, 1.15), ("decode", 8, 8, False, 1.25), ("decode", 64, 64, False, 1.5))


def operands(rows: int, adapters: int, dtype: torch.dtype):
    """x, weight, one A and B an adapter, an index of equal shares in no order, and dY."""
    torch.manual_seed(0)
    x, dY = (torch.randn(rows, n).to(dtype) for n in (K, N))
    weight = (torch.randn(N, K) / K**0.5).to(dtype)
    A = [(torch.randn(R, K) / K**0.5).to(dtype).requires_grad_() for _ in range(adapters)]
    B = [(torch.randn(N, R) / R**0.5).to(dtype).requires_grad_() for _ in range(adapters)]
    return x.requires_grad_(), weight, A, B, torch.randperm(rows) % adapters, dY


def steps(rows: int, adapters: int, trains: bool, dtype: torch.dtype) -> dict:
    """{name: a function of nothing}: the same rows as those of one adapter, of one in the segmented op, and of all."""
    x, weight, A, B, index, dY = operands(rows, adapters, dtype)
    p, alone = P if trains else 0.0, torch.zeros_like(index)

    def one():
        return pf.lora_linear(x, weight, A[0], B[0], scaling=SCALING, dropout_p=p)

    def several(A, B, index):
        return pf.multi_lora_linear(x, weight, A, B, index, scalings=SCALING, dropout_ps=p)

    calls = {
        "one adapter": (one, A[:1] + B[:1]),
        "one, by index": (lambda: several(A[:1], B[:1], alone), A[:1] + B[:1]),
        f"{adapters} adapters": (lambda: several(A, B, index), A + B),
    }

    def training(forward, parameters):
        return lambda: torch.autograd.grad(forward(), (x, *parameters), dY)

    def decoding(forward, _):
        def step():
            with torch.no_grad():
                return forward()

        return step

    return {name: (training if trains else decoding)(*call) for name, call in calls.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each case (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; above 1 the clock is the wall's")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(machine())
    for what, rows, adapters, trains, most in CASES:
        made = steps(rows, adapters, trains, getattr(torch, args.dtype))
        medians = interleaved(made, clock, args.seconds, most=1001)
        base = medians["one adapter"]
        for name, seconds in medians.items():
            print(f"{what:7} {rows:4} rows {name:14} {seconds * 1e3:9.3f} ms {seconds / base:6.3f}  (target {most})")


if __name__ == "__main__":
    main()
