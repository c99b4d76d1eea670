"""python -m bench.defaults: the held-out loss over a run of SmolLM2-135M on small sets of dialogues.

TUNED are the sets to choose a learning rate and a length on, CONFIRMED those to look at afterwards, once. A fifth of
each set is held out. Prints, of every run, the loss before, the lowest one with its epoch, and the one at the end. One
seed a run; all of it takes hours on two cores, and --sets and --rates choose less.
"""

import argparse
import tempfile
from pathlib import Path

import transformers

from pypeft_fast.cli.terminal import calm_libraries
from pypeft_fast.finetune.adapters.adapted import adapted
from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.tokens import Collator
from pypeft_fast.finetune.training.prepare import prepare
from pypeft_fast.finetune.training.schedule import schedule
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.training.train import fine_tune

FAQ = str(Path(__file__).parents[1] / "examples" / "faq.jsonl")
TUNED = ("chatterbot:tech_support", "chatterbot:emotion", "chatterbot:trivia")
CONFIRMED = (FAQ, "chatterbot:computers")
RATES = (2e-4, 5e-4, 1e-3)


def run(data: str, rate: float) -> dict:
    """The metrics of a run with the usual length for this set."""
    examples = load_data(data)
    settings = Settings(
        "smollm2", data, learning_rate=rate, eval_fraction=0.2, max_length=128, **schedule(len(examples))
    )
    base, tokenizer = load_base(settings.model)
    transformers.set_seed(settings.seed)
    encoded = prepare(tokenizer, examples, settings)
    model = adapted(base, settings)
    with tempfile.TemporaryDirectory() as folder:
        return fine_tune(model, encoded, Collator.of(tokenizer), settings, Path(folder), None)


def line(data: str, rate: float, metrics: dict) -> str:
    """One run in a line of a Markdown table."""
    settings = Settings(**metrics["settings"])
    per_epoch = settings.steps_per_epoch(metrics["train_examples"])
    history = metrics["loss_history"]["held_out"]
    step, best = min(history[1:], key=lambda pair: pair[1])
    cells = (Path(data).name, metrics["train_examples"], f"{rate:g}", f"{settings.epochs:g}", f"{history[0][1]:.3f}")
    cells = (*cells, f"{best:.3f}", f"{step / per_epoch:.1f}", f"{history[-1][1]:.3f}")
    return "| " + " | ".join(map(str, cells)) + " |"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The held-out loss of runs on small sets.")
    parser.add_argument("--sets", nargs="+", default=[*TUNED, *CONFIRMED], metavar="DATA", help="as finetune's --data")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, metavar="X", help="learning rates")
    arguments = parser.parse_args(argv)
    calm_libraries()
    print("| set | examples | rate | epochs | before | lowest | at epoch | at the end |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for data in arguments.sets:
        for rate in arguments.rates:
            print(line(data, rate, run(data, rate)), flush=True)


if __name__ == "__main__":
    main()
