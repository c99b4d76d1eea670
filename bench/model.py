"""python -m bench.model: a training step and a decoded token of SmolLM2-135M: ours, PEFT and the frozen model.

The step: B=4, T=128, LoRA r=16 with dropout 0.05 on every linear layer, two threads, wall time, rounds interleaved,
medians. The frozen model's step runs forward and backward down to the embeddings. Writes model.json, .md and .png.
"""

import gc
import sys

import torch

import pypeft_fast as pf
from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.measure import counting_saved_bytes

from .harness import parsers, report
from .harness.causal_lm import graph_to_the_embeddings, loss_of, randomize_adapters, token_steps, training_steps
from .harness.targets import at_least, at_most
from .harness.timing import interleaved_wall, machine

NAMES = ("frozen", "PEFT", "ours")
HEADER = ("dtype", "what", *NAMES)
LIMITS = {"float32": 1.45, "bfloat16": 1.75}


def models(name, dtype):
    """{"frozen", "PEFT", "ours": model}: three copies of the base model, two with the same adapter."""
    import peft

    made = {"frozen": load_base(name, dtype)[0].requires_grad_(False)}
    for label, library in (("PEFT", peft), ("ours", pf)):
        torch.manual_seed(0)
        config = library.LoraConfig(
            r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        made[label] = library.get_peft_model(load_base(name, dtype)[0], config)
        randomize_adapters(made[label])
    for model in made.values():
        graph_to_the_embeddings(model)
    return made


def training(made, shape, seconds):
    """({name: seconds of forward and backward}, {name: bytes saved for backward})"""
    tokens = torch.randint(0, made["frozen"].config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    saved = {}
    for name, model in made.items():
        model.train()
        with counting_saved_bytes(model) as counted:
            loss_of(model, tokens)
        saved[name] = counted[0]

    return interleaved_wall(training_steps(made, tokens), seconds), saved


def decoding(made, seconds):
    """{name: seconds of one token after a prompt of 32, with the adapter active}.

    SystemExit if our logits differ from PEFT's, or if the adapter has no effect.
    """
    with torch.no_grad():
        steps, logits = token_steps(made, torch.arange(100, 132)[None])
        logits = {name: t.double() for name, t in logits.items()}
        size, off = logits["PEFT"].norm(), (logits["ours"] - logits["PEFT"]).norm()
        limit = 0.02 if made["ours"].dtype == torch.bfloat16 else 1e-4
        if not off <= limit * size:
            sys.exit(f"ours: a token's logits are {off / size:.3g} off PEFT's: no speed is reported")
        if not (logits["PEFT"] - logits["frozen"]).norm() > limit * size:
            sys.exit("the adapter has no effect, so the check cannot detect a wrong adapter: no speed is reported")
        return interleaved_wall(steps, seconds)


def overhead(seconds):
    """{no_grad, grad: microseconds} of pf.lora_linear on 8x8 tensors."""
    x, weight, A, B = (torch.randn(8, 8) for _ in range(4))
    A.requires_grad_(), B.requires_grad_()

    def calls():
        for _ in range(1000):
            pf.lora_linear(x, weight, A, B)

    def without_grad():
        with torch.no_grad():
            calls()

    times = interleaved_wall({"no_grad": without_grad, "grad": calls}, seconds)
    return {name: 1e3 * t for name, t in times.items()}  # seconds for 1000 calls -> microseconds per call


def target_rows(measured, host):
    rows = []
    for dtype, (step, saved, token) in measured.items():
        rows.append(at_least(f"step, speed-up over PEFT, {dtype}", step["PEFT"] / step["ours"], LIMITS[dtype]))
        rows.append(at_most(f"step / frozen model's, {dtype}", step["ours"] / step["frozen"], 1.12))
        share = (saved["ours"] - saved["frozen"]) / (saved["PEFT"] - saved["frozen"])
        rows.append(at_most(f"bytes saved beyond the frozen model's / PEFT's, {dtype}", share, 0.12))
        rows.append(at_most(f"one token / base model, {dtype}", token["ours"] / token["frozen"], 1.1))
    rows.append(at_most("pf.lora_linear on 8x8, no_grad, microseconds", host["no_grad"], 12))
    rows.append(at_most("pf.lora_linear on 8x8, with grad, microseconds", host["grad"], 30))
    return rows


def table(measured):
    rows = []
    for dtype, numbers in measured.items():
        for what, unit, values in zip(("step, ms", "saved, MB", "token, ms"), (1e3, 1e-6, 1e3), numbers, strict=True):
            rows.append((dtype, what, *(f"{values[name] * unit:.1f}" for name in NAMES)))
    return rows


def plot(path, measured):
    labels, panels = ("step", "bytes saved", "token"), {}
    for dtype, numbers in measured.items():
        panels[dtype] = labels, {n: [v[n] / v["frozen"] for v in numbers] for n in ("PEFT", "ours")}
    report.bars(path, panels, "over the frozen model")


def main(arguments=None):
    parser = parsers.of_model("model", __doc__, seconds=60, each="table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    about = machine() | {"threads": options.threads, "batch": "x".join(map(str, options.shape))}
    measured = {}
    line = report.aligned(HEADER, LIMITS)
    print(report.headline(about), line(HEADER), sep="\n", flush=True)
    for dtype in LIMITS:
        report.doing(f"{dtype}: loads {options.model} three times, then times tokens")
        try:
            made = models(options.model, getattr(torch, dtype))
        except UserError as error:
            sys.exit(f"bench.model: {error}")
        token = decoding(made, options.seconds / 4)
        report.doing(f"{dtype}: times at least five steps of each model")
        measured[dtype] = (*training(made, options.shape, options.seconds), token)
        print(*map(line, table({dtype: measured[dtype]})), sep="\n", flush=True)
        del made
        gc.collect()
    host = overhead(min(2.0, options.seconds))
    rows, targets = table(measured), target_rows(measured, host)
    print(report.verdicts(targets))
    data = {
        "machine": about,
        "results": measured,
        "overhead": host,
        "targets": targets,
    }
    report.write(options.output, "model", data, [(report.TARGET_HEADER, targets), (HEADER, rows)])
    plot(options.output / "model.png", measured)


if __name__ == "__main__":
    main()
