"""python -m bench.defaults: the held-out loss of runs of SmolLM2-135M on small sets of dialogues.

The sets in TUNED are for choosing a learning rate and a length. The sets in CONFIRMED are for one final check. A fifth
of each set is held out; each seed holds out another fifth. Each run appends one line to --results when it ends. A
second call makes only the missing runs, and prints the table of all requested runs. All runs take hours on two cores;
--sets, --methods, --rates and --seeds select a part.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path

import transformers

from pypeft_fast.finetune.adapters.adapted import adapted
from pypeft_fast.finetune.adapters.methods import METHODS
from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.calm import calm_libraries
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.tokens import Collator
from pypeft_fast.finetune.training.prepare import prepare
from pypeft_fast.finetune.training.resolve import resolve
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.training.train import fine_tune

ROOT = Path(__file__).parents[1]
FAQ = "examples/faq.jsonl"
TUNED = ("chatterbot:tech_support", "chatterbot:emotion", "chatterbot:trivia")
CONFIRMED = (FAQ, "chatterbot:computers", "chatterbot:food")
RESULTS = Path("out/bench/defaults.jsonl")
PATIENCE = 2
KEY = ("set", "method", "rate")
HEADER = (*KEY, "seeds", "examples", "epochs", "before", "kept", "fell", "at epoch", "at the end", "with patience")


def run(data: str, method: str, rate: float | None, seed: int) -> dict:
    """One line of --results: a run with the command's default options, but with a fifth of the data held out."""
    examples = load_data(str(ROOT / data) if data == FAQ else data)
    asked = {field.name: field.default for field in dataclasses.fields(Settings)}
    asked |= {name: None for name in ("rank", "alpha", "dropout", "target_modules", "epochs", "batch_size")}
    asked |= {"gradient_accumulation": None, "max_steps": None, "eval_fraction": 0.2, "seed": seed}
    asked |= {"model": "smollm2", "data": data, "method": method, "learning_rate": rate}
    settings = resolve(asked, len(examples), None)
    base, tokenizer = load_base(settings.model)
    transformers.set_seed(settings.seed)
    encoded = prepare(tokenizer, examples, settings)
    model = adapted(base, settings)
    with tempfile.TemporaryDirectory() as folder:
        metrics = fine_tune(model, encoded, Collator.of(tokenizer), settings, Path(folder), None)
    return {
        "set": data,
        "method": method,
        "rate": settings.learning_rate,
        "seed": seed,
        "examples": len(examples),
        "epochs": settings.epochs,
        "steps_per_epoch": settings.steps_per_epoch(metrics["train_examples"]),
        "held_out": metrics["loss_history"]["held_out"],
    }


def patient(history: list, patience: int) -> float:
    """The lowest held-out loss of a run with early stopping after `--patience` evaluations without improvement.

    Both runs have the same learning-rate schedule, so the losses of the complete run contain those of the stopped run.
    """
    best, waited = history[0], 0
    for loss in history[1:]:
        best, waited = (loss, 0) if loss < best else (best, waited + 1)
        if waited == patience:
            break
    return best


def row(runs: list[dict]) -> tuple:
    """The row of all runs of one set, method and rate: means over the seeds, and the number of runs whose loss fell."""
    before = [its["held_out"][0][1] for its in runs]
    lowest = [min(its["held_out"][1:], key=lambda pair: pair[1]) for its in runs]
    epochs = [step / its["steps_per_epoch"] for (step, _), its in zip(lowest, runs, strict=True)]
    fell = sum(loss < start for (_, loss), start in zip(lowest, before, strict=True))
    stopped = [patient([loss for _, loss in its["held_out"][1:]], PATIENCE) for its in runs]
    first, mean = runs[0], statistics.mean
    return (
        *(first["set"], first["method"], f"{first['rate']:g}", len(runs), first["examples"], f"{first['epochs']:g}"),
        *(f"{mean(before):.3f}", f"{mean(loss for _, loss in lowest):.3f}", f"{fell} of {len(runs)}"),
        *(f"{mean(epochs):.1f}", f"{mean(its['held_out'][-1][1] for its in runs):.3f}", f"{mean(stopped):.3f}"),
    )


def table(runs: Iterable[dict]) -> str:
    """The runs as a Markdown table of mean held-out losses.

    before: of the base model. kept: of the adapter that a run keeps. at the end: after the last step. with patience: of
    the adapter that a run with --patience PATIENCE keeps.
    """
    groups: dict[tuple, list[dict]] = {}
    for its in runs:
        groups.setdefault(tuple(its[name] for name in KEY), []).append(its)
    # sorted() is stable, so the sets stay in the order of the results
    order = sorted(groups, key=lambda key: (list(METHODS).index(key[1]), key[2]))
    lines = [HEADER, ["---"] * len(HEADER), *(row(groups[key]) for key in order)]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def kept(path: Path) -> dict[tuple, dict]:
    """The runs in a file of results, by set, method, rate and seed."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {tuple(its[name] for name in (*KEY, "seed")): its for its in map(json.loads, lines)}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The held-out loss of runs on small sets.")
    parser.add_argument("--sets", nargs="+", default=[*TUNED, *CONFIRMED], metavar="DATA", help="as finetune's --data")
    parser.add_argument("--methods", nargs="+", default=["lora"], choices=list(METHODS), metavar="M", help="or dora...")
    parser.add_argument("--rates", nargs="+", type=float, metavar="X", help="learning rates (default: the method's)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="only print the table of all runs in --results")
    arguments = parser.parse_args(argv)
    if arguments.show:
        print(table(kept(arguments.results).values()))
        return
    calm_libraries()
    done, asked = kept(arguments.results), []
    for seed in arguments.seeds:
        for method in arguments.methods:
            for rate in arguments.rates or [METHODS[method].learning_rate]:
                for data in arguments.sets:
                    key = (data, method, rate, seed)
                    if key not in done:
                        done[key] = run(data, method, rate, seed)
                        arguments.results.parent.mkdir(parents=True, exist_ok=True)
                        with open(arguments.results, "a") as file:
                            file.write(json.dumps(done[key]) + "\n")
                    asked.append(done[key])
    print(table(asked))


if __name__ == "__main__":
    main()
