"""python -m bench.plan: the error of `pypeft-fast plan`: predicted and measured peak memory and seconds of a step.

Each case is predicted in one process and trained for a few steps in another, on the CPU with one thread. The peak is
the largest resident set of the training process, loading included; the seconds are the process's CPU time, since other
processes on the machine affect it least. Writes plan.json and .md.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from .harness import report
from .harness.targets import at_most

HEADER = ("case", "peak MB", "predicted", "error", "seconds", "predicted", "error")
PEAK, SECONDS = 0.10, 0.25  # the largest errors
STEPS = 3  # after one that warms up
TINY = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
LLAMAS = {
    "wide": dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12,
                 num_key_value_heads=4, vocab_size=16000),
    "deep": dict(hidden_size=384, intermediate_size=1024, num_hidden_layers=16, num_attention_heads=6,
                 num_key_value_heads=2, vocab_size=8192),
    "tiny": TINY | dict(vocab_size=512),
}  # fmt: skip
BLOCKS = 6  # of SmolLM2


@dataclass(frozen=True)
class Case:
    model: str
    method: str
    targets: str
    rank: int | None
    base: str
    dtype: str
    rows: int
    tokens: int
    checkpointing: bool = False

    def __str__(self):
        rank = "" if self.rank is None else f" r={self.rank}"
        saving = " checkpointed" if self.checkpointing else ""
        what = f"{self.method} {self.targets}{rank} over {self.base}"
        return f"{self.model} {what} {self.dtype} {self.rows}x{self.tokens}{saving}"


CASES = [
    Case("smollm2", "lora", "all-linear", 16, "dense", "float32", 4, 64),
    Case("smollm2", "lora", "all-linear", 16, "dense", "float32", 4, 128, True),
    Case("smollm2", "lora", "q,v", 64, "nf4", "float32", 2, 128),
    Case("smollm2", "dora", "attention", 8, "dense", "float32", 2, 128),
    Case("smollm2", "ia3", "all-linear", None, "dense", "float32", 4, 64),
    Case("smollm2", "lora", "mlp", 64, "int8", "bfloat16", 4, 64),
    Case("wide", "lora", "all-linear", 64, "dense", "float32", 2, 128),
    Case("wide", "lora", "all-linear", 16, "nf4", "float32", 1, 256, True),
    Case("wide", "lora", "q,v", 16, "dense", "bfloat16", 4, 128),
    Case("wide", "dora", "all-linear", 16, "dense", "float32", 1, 128),
    Case("deep", "lora", "attention", 16, "dense", "float32", 8, 64),
    Case("deep", "ia3", "q,v", None, "int8", "float32", 4, 64),
    Case("deep", "lora", "all-linear", 4, "dense", "float32", 1, 512),
    Case("deep", "dora", "mlp", 16, "nf4", "bfloat16", 2, 128),
    Case("whole", "lora", "all-linear", 16, "dense", "float32", 8, 64),
    Case("whole", "lora", "q,v", 16, "nf4", "bfloat16", 4, 128, True),
]
SMALL = Case("tiny", "lora", "all-linear", 4, "dense", "float32", 2, 16)


def make_folder(name: str, folder: Path) -> None:
    """Writes the model with the tokenizer of SmolLM2, for `load_base`: random weights, or SmolLM2's first blocks; all
    of its blocks for "whole"."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from pypeft_fast.finetune.base_models import load_base, smollm2_path

    if name in ("smollm2", "whole"):
        model, _ = load_base("smollm2")
        if name == "smollm2":
            model.model.layers = model.model.layers[:BLOCKS]
            model.config.num_hidden_layers = BLOCKS
    else:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**LLAMAS[name]))
    model.save_pretrained(folder)
    for file in smollm2_path().iterdir():
        if file.suffix != ".safetensors" and not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())


def predicted(case: Case, folder: str) -> dict:
    from pypeft_fast.finetune.plan.make import Wanted, make_plan

    wanted = Wanted(
        methods=(case.method,),
        groups=(case.targets,),
        ranks=(case.rank or 1,),
        bases=(None if case.base == "dense" else case.base,),
        batch_size=case.rows,
        max_length=case.tokens,
        dtype=case.dtype,
    )
    (row,) = make_plan(folder, wanted, clock=time.process_time).rows
    parts = asdict(row.memory[case.checkpointing])
    peak, seconds = row.memory[case.checkpointing].peak, row.seconds[case.checkpointing]
    return {"peak": peak, "seconds": seconds, "parts": parts, "target_modules": row.candidate.target_modules}


def measured(case: Case, folder: str, target_modules) -> dict:
    """The peak of this process, and the median CPU time of a step, of a model loaded and adapted as `finetune` does."""
    import torch

    from pypeft_fast.finetune.adapters.adapted import adapted
    from pypeft_fast.finetune.memory import peak_memory_bytes
    from pypeft_fast.finetune.plan.candidates import Candidate
    from pypeft_fast.finetune.training.measure import one_step
    from pypeft_fast.finetune.training.ready import load_base

    modules = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    candidate = Candidate(case.method, case.targets, modules, case.rank)
    base, _ = load_base(folder, case.dtype, None if case.base == "dense" else case.base)
    loaded, model = peak_memory_bytes(), adapted(base, candidate.settings(folder)).train()
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.randint(0, base.config.vocab_size, (case.rows, case.tokens))
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    seconds = []
    for _ in range(1 + STEPS):
        began = time.process_time()
        one_step(model, optimizer, batch)
        seconds.append(time.process_time() - began)
    return {"peak": peak_memory_bytes(), "loaded": loaded, "seconds": statistics.median(seconds[1:])}


def apart(what: str, case: Case, *more: str) -> dict:
    """The result of `predicted` or `measured`, or what `make_folder` prints, in a process of its own."""
    command = [sys.executable, "-m", "bench.plan", "--one", what, json.dumps(asdict(case)), *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one(what: str, case: Case, folder: str, *more: str) -> dict:
    import torch

    from pypeft_fast.finetune.calm import calm_libraries
    from pypeft_fast.finetune.training import train  # noqa: F401 - what a run imports takes memory too

    torch.set_num_threads(1)
    calm_libraries()
    if what == "make":
        make_folder(case.model, Path(folder))
        return {}
    return predicted(case, folder) if what == "predict" else measured(case, folder, json.loads(more[0]))


def row(case: Case, said: dict, found: dict) -> tuple[str, ...]:
    cells = []
    for name, unit, digits in (("peak", 1e-6, 0), ("seconds", 1, 2)):
        cells += [f"{its[name] * unit:.{digits}f}" for its in (found, said)] + [f"{error(said, found, name):+.1%}"]
    return str(case), *cells


def error(said: dict, found: dict, name: str) -> float:
    return said[name] / found[name] - 1


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.plan", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="cases whose name contains this, such as dora or wide")
    parser.add_argument("--small", action="store_true", help="one case of a tiny model, to test the program")
    parser.add_argument("--output", type=Path, default=report.OUTPUT, help="folder (default: %(default)s)")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        what, case, *more = options.one
        print(json.dumps(one(what, Case(**json.loads(case)), *more)))
        return
    cases = [SMALL] if options.small else [case for case in CASES if options.only in str(case)]
    if not cases:
        parser.error(f"--only {options.only}: no case has this in its name; give a part of a name, such as {CASES[0]}")
    from .harness.timing import machine

    about, results = machine(), []
    line = report.aligned(HEADER, map(str, cases))
    print(report.headline(about), line(HEADER), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases:
            folder = Path(scratch) / case.model
            if not folder.exists():
                apart("make", case, str(folder))
            said = apart("predict", case, str(folder))
            found = apart("measure", case, str(folder), json.dumps(said["target_modules"]))
            results.append({"case": asdict(case), "predicted": said, "measured": found})
            print(line(row(case, said, found)), flush=True)
    targets = []
    for name, most in (("peak", PEAK), ("seconds", SECONDS)):
        worst = max(abs(error(its["predicted"], its["measured"], name)) for its in results)
        targets.append(at_most(f"worst error of {name} in {len(results)} cases", worst, most))
    print(report.verdicts(targets))
    rows = [row(Case(**its["case"]), its["predicted"], its["measured"]) for its in results]
    data = {"machine": about, "results": results, "targets": targets}
    report.write(options.output, "plan", data, [(report.TARGET_HEADER, targets), (HEADER, rows)])


if __name__ == "__main__":
    main()
