"""`make methods` from end to end on a tiny encoder: its table, its adapters, and its split of the data."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parents[2] / "examples" / "methods.py"


@pytest.fixture(scope="module")
def methods():
    spec = importlib.util.spec_from_file_location("methods", HERE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods"] = module  # dataclasses need their module in sys.modules
    spec.loader.exec_module(module)
    yield module
    del sys.modules["methods"]


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory, tokenizer):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny-bert")
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_end_to_end(methods, tiny_encoder, tmp_path, capsys):
    options = ["--epochs", 1, "--trial-epochs", 1, "--steps", 1, "--least", 60, "--most", 24]
    methods.main([str(a) for a in ["--model", tiny_encoder, "--output", tmp_path, *options]])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    out = capsys.readouterr().out
    assert set(metrics) == {methods.HEAD_ALONE, *methods.METHODS, "run"}
    for method in methods.METHODS:
        its = metrics[method]
        assert method in out and 0 <= its["accuracy_after"] <= 1
        assert its["file_bytes"] == (tmp_path / method / "adapter_model.safetensors").stat().st_size
        assert its["learning_rate"] in methods.LEARNING_RATES
        assert its["seconds_per_step"] > 0 and ("peft_seconds_per_step" in its) == (method in methods.IN_PEFT)
        if method in ("lora", "dora"):
            assert its["saved_bytes"] < its["peft_saved_bytes"]
        assert its["trainable_parameters"] > metrics[methods.HEAD_ALONE]["trainable_parameters"]


def test_no_question_is_on_both_sides(methods):
    task = methods.read_task(20, 100)
    train, held_out = ({question for question, _ in rows} for rows in (task.train, task.held_out))
    assert not train & held_out and len(train) == len(task.train) and len(held_out) == len(task.held_out)
    assert {label for _, label in task.held_out} == set(range(len(task.topics)))
    assert len(task.topics) >= 8 and len(task.train) > 2 * len(task.held_out)


def test_the_learning_rate_is_the_best_on_training_questions_alone(methods, tiny_encoder, monkeypatch):
    from transformers import AutoTokenizer

    task = methods.read_task(60, 24)
    trial = methods.without_held_out(task)
    assert sorted(trial.train + trial.held_out) == sorted(task.train) and not set(trial.train) & set(trial.held_out)
    assert {label for _, label in trial.held_out} == set(range(len(task.topics)))
    losses, asked = iter((float("nan"), 0.2, 0.9)), []
    monkeypatch.setattr(methods, "evaluate", lambda model, tokenizer, rows: (asked.append(rows), next(losses)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder)
    assert methods.choose_rate("ia3", tiny_encoder, task, tokenizer, 1) == methods.LEARNING_RATES[1]
    assert asked == [trial.held_out] * 3
