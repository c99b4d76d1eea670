"""python -m bench.fuse: SmolLM2-135M under Hugging Face PEFT, before and after pf.fuse, in one run.

Timed are a training step (B=4, T=128, forward and backward), one decoded token, and one token for each of 64 rows that
belong to 1, 8 or 64 adapters. PEFT's defaults: float32 adapters over the base's dtype. Two threads, wall time,
interleaved, medians. Both models share every parameter. They are timed only if their logits agree, and for a step also
their gradients. Writes fuse.json, .md and .png.
"""

import copy
import gc
import math
import sys
import time
from pathlib import Path

import torch

import pypeft_fast as pf
from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.measure import counting_saved_bytes

from .harness import parsers, report
from .harness.causal_lm import graph_to_the_embeddings, loss_of, randomize_adapters, token_steps, training_steps
from .harness.targets import at_least, at_most
from .harness.timing import interleaved_wall, machine

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = [  # method, dropout
    ("LoRA", 0.05),
    ("LoRA", 0.0),
    ("DoRA", 0.05),
    ("IA3", 0.0),
]
# The largest accepted differences of logits, of gradients, and of the logits of one decoded token, relative to their
# norm. PEFT in bfloat16 differs about half as much from the same model in float32, and a token decoded without the
# adapter differs more.
TOLERANCE = {
    "bfloat16": {"logits": 0.05, "gradients": 0.1, "token": 0.02},
    "float32": {"logits": 1e-4, "gradients": 1e-4, "token": 1e-4},
}
HEADER = ("case", "step ms: PEFT", "fused", "faster", "saved MB: PEFT", "fused", "token ms: PEFT", "fused", "faster")
ROWS_HEADER = ("adapters in the batch", "token ms: PEFT", "fused", "faster")
TEXT = Path(__file__).parents[1] / "LICENSE"
ROWS = 64
PROMPT = 16


def config_of(method, p):
    import peft

    if method == "IA3":
        return peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    return peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=p, target_modules=TARGETS, use_dora=method == "DoRA")


def fused_twin(model):
    """(a fused copy of the model that shares the model's parameters, the seconds of pf.fuse)."""
    twin = copy.deepcopy(model, {id(t): t for t in [*model.parameters(), *model.buffers()]})
    start = time.perf_counter()
    pf.fuse(twin, strict=True)
    return twin, time.perf_counter() - start


def batch_of(tokenizer, shape):
    """Tokens of a real text: the gradients in bfloat16 have a relative error of about 0.04 against float32.

    For some batches of random tokens the relative error is about 1, also with PEFT alone.
    """
    ids = torch.tensor(tokenizer(TEXT.read_text())["input_ids"])
    return ids.repeat(-(-math.prod(shape) // len(ids)))[: math.prod(shape)].view(shape)


def saved_bytes(model, tokens):
    with counting_saved_bytes(model) as counted:
        loss_of(model, tokens)
    return counted[0]


def relative_difference(got, want):
    """|got - want| / |want|"""
    return ((got - want).norm() / want.norm()).item()


def agree(made, tokens):
    """SystemExit if the two models' logits or gradients differ without dropout, or if the adapter has no effect."""
    found = {}
    for name, model in made.items():
        output = model.eval()(input_ids=tokens, labels=tokens, use_cache=False)
        output.loss.backward()
        grads = [p.grad.flatten().double() for p in model.parameters() if p.grad is not None]
        found[name] = output.logits.detach().double(), torch.cat(grads)
        model.zero_grad()
        model.train()
    for what, got, want in zip(("logits", "gradients"), found["fused"], found["PEFT"], strict=True):
        if not relative_difference(got, want) <= tolerance(made, what):
            sys.exit(f"fused, the {what} are {relative_difference(got, want):.2g} off PEFT's: no speed is reported")
    with torch.no_grad(), made["PEFT"].disable_adapter():
        without = made["PEFT"](input_ids=tokens, use_cache=False).logits.double()
    if relative_difference(without, found["PEFT"][0]) <= tolerance(made):
        sys.exit("the adapter has no effect, so the check cannot detect a wrong adapter: no speed is reported")


def tolerance(made, what="logits"):
    return TOLERANCE[str(made["PEFT"].dtype).removeprefix("torch.")][what]


@torch.no_grad()
def decoding(made, seconds, rows=1, **options):
    """{name: seconds for one token of each row}; SystemExit if the logits differ from PEFT's."""
    prompt = torch.arange(100, 100 + PROMPT).repeat(rows, 1)
    steps, logits = token_steps(made, prompt, **options)
    wrong = relative_difference(logits["fused"].double(), logits["PEFT"].double())
    if not wrong <= tolerance(made, "token"):
        sys.exit(f"fused, the logits are {wrong:.2g} off PEFT's: no speed is reported")
    return interleaved_wall(steps, seconds)


def run_case(base, name, method, p, tokens, floor, seconds):
    """The measurements of one case, as a dict; the base model is restored."""
    import peft

    report.doing(f"{name}: compares logits and gradients with PEFT's")

    torch.manual_seed(0)
    model = peft.get_peft_model(base, config_of(method, p))
    randomize_adapters(model)
    twin, fuse_seconds = fused_twin(model)
    made = {"PEFT": model, "fused": twin}
    agree(made, tokens)
    saved = {name: saved_bytes(m, tokens) - floor for name, m in made.items()}
    report.doing(f"{name}: times at least five steps of each model, then tokens")
    times = interleaved_wall(training_steps(made, tokens), seconds)
    token = decoding(made, seconds / 4)
    model.unload()
    return {"step": times, "saved": saved, "token": token, "fuse": fuse_seconds}


def run_rows(base, counts, seconds):
    """{number of adapters: {"PEFT", "fused": seconds for one token of each of 64 rows}}."""
    import peft

    model, measured = peft.get_peft_model(base, config_of("LoRA", 0.0), "a0"), {}
    for count in counts:
        report.doing(f"a batch of {ROWS} rows, {count} adapters: times tokens")
        for i in range(len(model.peft_config), count):
            model.add_adapter(f"a{i}", config_of("LoRA", 0.0))
        randomize_adapters(model)
        made = {"PEFT": model, "fused": fused_twin(model)[0]}
        names = [f"a{i * count // ROWS}" for i in range(ROWS)]  # the rows of an adapter are adjacent
        measured[count] = decoding(made, seconds, ROWS, adapter_names=names)
    model.unload()
    return measured


def name_of(method, p, dtype):
    return f"{method} {dtype}" + (f" p={p:g}" if method == "LoRA" or p else "")


def row_of(name, found):
    step, saved, token = found["step"], found["saved"], found["token"]
    cells = [f"{1e3 * step[n]:.0f}" for n in step] + [f"{step['PEFT'] / step['fused']:.2f}"]
    cells += [f"{saved[n] / 1e6:.0f}" for n in saved]
    return name, *cells, *rows_row("", token)[1:]


def rows_row(name, token):
    return name, *(f"{1e3 * token[n]:.1f}" for n in token), f"{token['PEFT'] / token['fused']:.2f}"


def target_rows(measured):
    found = measured.get("LoRA bfloat16 p=0.05")
    if found is None:
        return []
    step, saved = found["step"], found["saved"]
    return [
        at_least("step, times faster after pf.fuse, LoRA bfloat16 p=0.05", step["PEFT"] / step["fused"], 1.7),
        at_least("part of the bytes beyond the frozen model's cut", 1 - saved["fused"] / saved["PEFT"], 0.85),
        at_most("pf.fuse itself, seconds", max(f["fuse"] for f in measured.values()), 1),
    ]


def plot(path, measured, rows):
    faster = [[f[what]["PEFT"] / f[what]["fused"] for f in measured.values()] for what in ("step", "token")]
    labels = [*measured, *(f"{ROWS} rows, {count} adapters" for count in rows)]
    mixed = [token["PEFT"] / token["fused"] for token in rows.values()]
    series = {"training step": faster[0] + [None] * len(rows), "token": faster[1] + mixed}
    report.bars(path, {"": (labels, series)}, "times faster than PEFT")


def main(arguments=None):
    parser = parsers.of_model("fuse", __doc__, seconds=10, each="case")
    parser.add_argument(
        "--adapters", type=int, nargs="*", default=(1, 8, 64),
        help="adapters in a batch of 64 rows (1 8 64); without a number such batches are not timed",
    )  # fmt: skip
    parsers.add_only(parser, "LoRA")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    about = machine() | {"threads": options.threads, "batch": "x".join(map(str, options.shape))}
    measured, rows = {}, {}
    names = parsers.chosen(parser, [name_of(*case, dtype) for dtype in TOLERANCE for case in CASES], options.only)
    line = report.aligned(HEADER, names)
    print(report.headline(about), line(HEADER), sep="\n", flush=True)
    for dtype in TOLERANCE:
        cases = [case for case in CASES if name_of(*case, dtype) in names]
        counts = sorted(options.adapters) if dtype == "bfloat16" else []
        if not cases and not counts:
            continue
        report.doing(f"loads {options.model} in {dtype}")
        try:
            base, tokenizer = load_base(options.model, getattr(torch, dtype))
        except UserError as error:
            sys.exit(f"bench.fuse: {error}")
        base.requires_grad_(False).train()
        tokens = batch_of(tokenizer, options.shape)
        hook = graph_to_the_embeddings(base)
        floor = saved_bytes(base, tokens)
        for method, p in cases:
            name = name_of(method, p, dtype)
            measured[name] = run_case(base, name, method, p, tokens, floor, options.seconds)
            print(line(row_of(name, measured[name])), flush=True)
        hook.remove()
        if counts:
            rows = run_rows(base, counts, options.seconds)
            of_rows = report.aligned(ROWS_HEADER, ())
            print(of_rows(ROWS_HEADER), *(of_rows(rows_row(*item)) for item in rows.items()), sep="\n")
        del base
        gc.collect()
    targets = target_rows(measured)
    print(report.verdicts(targets))
    tables = [(report.TARGET_HEADER, targets), (HEADER, [row_of(*item) for item in measured.items()])]
    if rows:
        tables.append((ROWS_HEADER, [rows_row(*item) for item in rows.items()]))
    data = {"machine": about, "results": measured, "rows": rows, "targets": targets}
    report.write(options.output, "fuse", data, tables)
    plot(options.output / "fuse.png", measured, rows)


if __name__ == "__main__":
    main()
