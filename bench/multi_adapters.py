"""python -m bench.multi_adapters: rows of several adapters in one batch, compared with the same rows of one adapter.

A training step computes y, dX, dA and dB; decoding computes only y, without a graph. One thread, CPU time, interleaved;
the times are medians, and the ratio to one adapter is from the same run. Before a case is timed, every row is compared
with the result of its own adapter. The second table shows one token of a whole model for 64 rows, each of which names
its adapter, compared with the same model with one active adapter. The model's adapters are float32, PEFT's default; the
last rows have adapters in the base's dtype (autocast_adapter_dtype=False). Writes multi_adapters.json and .md.
"""

import argparse
import copy
import time
from pathlib import Path

import torch

import pypeft_fast as pf

from .harness import report
from .harness.causal_lm import randomize_adapters, token_steps
from .harness.targets import at_most
from .harness.timing import interleaved, machine

K = N = 2048
R, P, SCALING = 16, 0.05, 2.0
# (what, rows, adapters, whether it is a training step, the target for time / one adapter's time)
CASES = (("train", 512, 8, True, 1.15), ("decode", 8, 8, False, 1.25), ("decode", 64, 64, False, 1.5))
HEADER = ("case", "one ms", "one by index ms", "several ms", "several / one")
# SmolLM2-135M with 8 of its 30 layers and a small vocabulary: what differs between the cases is in the layers.
MODEL = dict(vocab_size=1024, hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODEL_ROWS, MODEL_R = 64, 8
NAMED = {1: 1.05, 8: 1.25, 64: 1.6}  # {adapters among the rows: the most that a token may cost over one active adapter}
OWN_DTYPE = ", adapters in the base's dtype"  # the end of such a row's name
MODEL_HEADER = ("a token for 64 rows", "ms", "over set_adapter")


def operands(rows: int, adapters: int, dtype: torch.dtype):
    """x, weight, one A and one B per adapter, a shuffled index with equal shares, and dY."""
    torch.manual_seed(0)
    x, dY = (torch.randn(rows, n).to(dtype) for n in (K, N))
    weight = (torch.randn(N, K) / K**0.5).to(dtype)
    A = [(torch.randn(R, K) / K**0.5).to(dtype).requires_grad_() for _ in range(adapters)]
    B = [(torch.randn(N, R) / R**0.5).to(dtype).requires_grad_() for _ in range(adapters)]
    return x.requires_grad_(), weight, A, B, torch.randperm(rows) % adapters, dY


def steps(rows: int, adapters: int, trains: bool, dtype: torch.dtype) -> dict:
    """{name: step} for the same rows: with one adapter, with one adapter in the segmented op, and with all adapters."""
    x, weight, A, B, index, dY = operands(rows, adapters, dtype)
    p, alone = P if trains else 0.0, torch.zeros_like(index)
    check(x, weight, A, B, index)

    def one():
        return pf.lora_linear(x, weight, A[0], B[0], scaling=SCALING, dropout_p=p)

    def several(A, B, index):
        return pf.multi_lora_linear(x, weight, A, B, index, scalings=SCALING, dropout_ps=p)

    calls = {
        "one adapter": (one, A[:1] + B[:1]),
        "one, by index": (lambda: several(A[:1], B[:1], alone), A[:1] + B[:1]),
        "several": (lambda: several(A, B, index), A + B),
    }

    def training(forward, parameters):
        return lambda: torch.autograd.grad(forward(), (x, *parameters), dY)

    def decoding(forward, _):
        def step():
            with torch.no_grad():
                return forward()

        return step

    return {name: (training if trains else decoding)(*call) for name, call in calls.items()}


@torch.no_grad()
def check(x, weight, A, B, index):
    """AssertionError if a row differs from the float64 result of its own adapter by more than rounding."""
    y = pf.multi_lora_linear(x, weight, A, B, index, scalings=SCALING)
    for a, (lora_A, lora_B) in enumerate(zip(A, B, strict=True)):
        own = x[index == a].double()
        wanted = own @ weight.double().t() + SCALING * (own @ lora_A.double().t() @ lora_B.double().t())
        error = (y[index == a].double() - wanted).norm() / wanted.norm()
        assert error < 0.01, f"adapter {a}: {error:.3g} from float64"


def many_adapters(layers, dtype, casts=True):
    """(the frozen model, the same model with an adapter for each of the rows); casts: half adapters to float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **MODEL)).to(dtype)
    model = copy.deepcopy(base)
    config = pf.LoraConfig(r=MODEL_R, lora_alpha=2 * MODEL_R, target_modules=TARGETS)
    for i in range(MODEL_ROWS):
        if i == 0:
            model = pf.get_peft_model(model, config, "0", autocast_adapter_dtype=casts)
        else:
            model.add_adapter(str(i), config, autocast_adapter_dtype=casts)
    randomize_adapters(model)
    model.set_adapter("0")
    return base, model


def named_steps(model, prompt, counts):
    """{name: (steps, logits) of token_steps}: one active adapter, and rows of so many adapters, which are checked."""
    made = {"set_adapter": token_steps({"set_adapter": model}, prompt)}
    for n in counts:
        rows = [str(i % n) for i in range(MODEL_ROWS)]
        name = f"{n} name{'s' * (n > 1)}"
        made[name] = token_steps({name: model}, prompt, adapter_names=rows)
        check_model(model, prompt, rows, made[name][1][name])
    return made


@torch.no_grad()
def model_steps(layers: int, dtype: torch.dtype) -> dict:
    """{name: a function that decodes one token for 64 rows}: the frozen model, one active adapter, named rows.

    AssertionError if a row's logits differ from those of its adapter alone by more than rounding.
    """
    base, model = many_adapters(layers, dtype)
    prompt = torch.randint(0, MODEL["vocab_size"], (MODEL_ROWS, 1))
    made = {"base": token_steps({"base": base}, prompt)} | named_steps(model, prompt, NAMED)
    if dtype != torch.float32:
        of_dtype = named_steps(many_adapters(layers, dtype, casts=False)[1], prompt, [MODEL_ROWS])
        for name, (steps, y) in of_dtype.items():
            made[name + OWN_DTYPE] = {name + OWN_DTYPE: steps[name]}, y
    return {name: steps[name] for name, (steps, _) in made.items()}


def check_model(model, prompt, rows, logits):
    """A first and a last row of the batch, alone with its adapter active, decoding the same token twice."""
    for row in (0, len(rows) - 1):
        model.set_adapter(rows[row])
        _, alone = token_steps({"alone": model}, prompt[row : row + 1])
        error = (logits[row] - alone["alone"][0]).norm() / alone["alone"][0].norm()
        assert error < 0.05, f"row {row}, adapter {rows[row]}: {error:.3g} from the adapter alone"
    model.set_adapter("0")


def time_model(layers, dtype, clock, seconds, line, targets):
    """The rows of the model's table, which are printed as they are made; their targets are added."""
    steps = model_steps(layers, dtype)
    with torch.no_grad():
        times = interleaved(steps, clock, seconds, most=201)
    rows = []
    for name, t in times.items():
        alone = times["set_adapter" + OWN_DTYPE * name.endswith(OWN_DTYPE)]
        rows.append((name, f"{1e3 * t:.2f}", f"{t / alone:.3f}"))
    for n, limit in NAMED.items():
        name = f"{n} name{'s' * (n > 1)}"
        targets.append(
            at_most(f"token for 64 rows, {name}, over set_adapter", times[name] / times["set_adapter"], limit)
        )
    print(*map(line, rows), sep="\n")
    return rows, times


def row(name, times):
    one, by_index, several = times.values()
    return name, *(f"{1e3 * t:.3f}" for t in (one, by_index, several)), f"{several / one:.3f}"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.multi_adapters", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of each case (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads; above 1, wall time is measured")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--layers", type=int, default=8, help="of the model (default: 8)")
    parser.add_argument("--output", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    names = [f"{what}, {rows} rows of {adapters} adapters" for what, rows, adapters, *_ in CASES]
    about, results, targets = machine(), {}, []
    line = report.aligned(HEADER, names)
    print(report.headline(about), line(HEADER), sep="\n")
    for name, (_, rows, adapters, trains, limit) in zip(names, CASES, strict=True):
        made = steps(rows, adapters, trains, getattr(torch, options.dtype))
        times = results[name] = interleaved(made, clock, options.seconds, most=1001)
        targets.append(at_most(f"{name}, over one adapter", times["several"] / times["one adapter"], limit))
        print(line(row(name, times)), flush=True)
    line = report.aligned(MODEL_HEADER, [f"set_adapter{OWN_DTYPE}"])
    print(line(MODEL_HEADER))
    dtype = getattr(torch, options.dtype)
    of_model, token = time_model(options.layers, dtype, clock, 3 * options.seconds, line, targets)
    data = {"machine": about, "threads": options.threads, "dtype": options.dtype, "results": results, "token": token}
    rows = [row(name, times) for name, times in results.items()]
    tables = [(report.TARGET_HEADER, targets), (HEADER, rows), (MODEL_HEADER, of_model)]
    report.write(options.output, "multi_adapters", {**data, "targets": targets}, tables)
    print(report.verdicts(targets))


if __name__ == "__main__":
    main()
