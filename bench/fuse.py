"""python -m bench.fuse: a training step and decoding of SmolLM2-135M under PEFT, before and after pf.fuse.

The same model, adapter values and batch in both; forward, backward and nothing else in a step. CPU time of the process,
the two in turn, medians. Saved bytes are those beyond the frozen model's. A speed is printed only after both agree in
the loss.
"""

import argparse
import gc
import statistics
import sys
import time

import peft
import torch

import pypeft_fast as pf
from pypeft_fast.cli.models import SMOLLM2, load_base

from .report import headline
from .timing import machine

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS = {
    "LoRA": lambda p: peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=p, target_modules=TARGETS),
    "DoRA": lambda p: peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=p, target_modules=TARGETS, use_dora=True),
    "IA3": lambda p: peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
}
CASES = [
    ("LoRA", torch.bfloat16, 0.05),
    ("LoRA", torch.bfloat16, 0.0),
    ("LoRA", torch.float32, 0.05),
    ("DoRA", torch.bfloat16, 0.05),
    ("IA3", torch.bfloat16, 0.0),
]


def saved_bytes(model, batch) -> int:
    """Bytes that autograd keeps for the backward pass; shared memory counts once, parameters do not."""
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing):
        model(**batch)
    return sum(storage.nbytes() for storage in kept.values())


def step(model, batch) -> float:
    start = time.process_time()
    model(**batch).loss.backward()
    seconds = time.process_time() - start
    model.zero_grad()
    return seconds


@torch.no_grad()
def decode(model, ids, tokens) -> float:
    start = time.process_time()
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return time.process_time() - start


def in_turn(model, measure, repeats):
    """Medians of measure() on the unfused and the fused model, after one run of each that is not counted."""
    times = {False: [], True: []}
    for _ in range(repeats + 1):
        for fused in (False, True):
            pf.fuse(model) if fused else pf.unfuse(model)
            times[fused].append(measure())
    return [statistics.median(times[fused][1:]) for fused in (False, True)]


def check(model, batch):
    """The loss without dropout, unfused and fused, within the rounding of the model's dtype."""
    model.eval()
    losses = []
    for change in (pf.unfuse, pf.fuse):
        change(model)
        losses.append(model(**batch).loss.item())
    model.train()
    if not abs(losses[0] - losses[1]) <= 2 * torch.finfo(model.dtype).eps * abs(losses[0]):
        raise SystemExit(f"the loss is {losses[1]} fused and {losses[0]} in PEFT: no speed is reported")


def run_case(base, method, p, batch, repeats, tokens):
    frozen = base.requires_grad_(False)
    frozen.get_input_embeddings().requires_grad_(True)  # so that the graph is that of a model with gradients
    floor = saved_bytes(frozen, batch)
    frozen.requires_grad_(False)
    model = peft.get_peft_model(base, METHODS[method](p)).train()
    check(model, batch)
    extra = []
    for change in (pf.unfuse, pf.fuse):
        change(model)
        extra.append(max(saved_bytes(model, batch) - floor, 0))
    steps = in_turn(model, lambda: step(model, batch), repeats)
    model.eval()
    decodes = in_turn(model, lambda: decode(model, batch["input_ids"][:1, :16], tokens), 1)
    return steps, extra, decodes


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.fuse", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each (default 3)")
    parser.add_argument("--tokens", type=int, default=8, help="tokens decoded (default 8)")
    parser.add_argument("--shape", type=int, nargs=2, default=(2, 128), help="rows and tokens of a batch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(headline(machine()))
    columns = f"{'step s: PEFT':>14}{'fused':>8}{'ratio':>7}{'saved MB: PEFT':>16}{'fused':>8}"
    print(f"{'':24}{columns}{'token ms: PEFT':>16}{'fused':>8}")
    for method, dtype, p in CASES:
        torch.manual_seed(0)
        base = load_base(SMOLLM2)[0].to(dtype)
        ids = torch.randint(0, base.config.vocab_size, tuple(options.shape))
        batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)
        steps, extra, decodes = run_case(base, method, p, batch, options.repeats, options.tokens)
        label = f"{method} {dtype} p={p:g}".replace("torch.", "")
        row = f"{steps[0]:14.2f}{steps[1]:8.2f}{steps[0] / steps[1]:6.2f}x{extra[0] / 1e6:16.1f}{extra[1] / 1e6:8.1f}"
        print(
            f"{label:24}{row}{1e3 * decodes[0] / options.tokens:16.1f}{1e3 * decodes[1] / options.tokens:8.1f}",
            flush=True,
        )
        if (method, dtype, p) == CASES[0]:
            ratio, cut = steps[0] / steps[1], 1 - extra[1] / extra[0]
            for what, value, wanted in (("faster step", ratio, 1.7), ("part of saved bytes cut", cut, 0.85)):
                print(f"  target: {what} {wanted}, here {value:.2f}: {'pass' if value >= wanted else 'fall short'}")
        del base
        gc.collect()


if __name__ == "__main__":
    sys.exit(main())
