"""The demo from end to end on a tiny model, and its count of the bytes that autograd saves."""

import importlib.util
import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

KEYS = "eval_loss_before eval_loss_after seconds_per_step peft_seconds_per_step saved_bytes peft_saved_bytes".split()


@pytest.fixture(scope="module")
def demo():
    path = Path(__file__).parents[2] / "examples" / "demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("without_announcements")
def test_end_to_end(demo, tiny_model, tmp_path, capsys):
    arguments = ["--model", tiny_model, "--output", tmp_path, "--steps", 3, "--compare-steps", 1]
    demo.main([str(a) for a in arguments])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["run"]["peak_memory_bytes"] > 1e8
    for topic in ("tech_support", "coding"):
        assert all(metrics[topic][key] > 0 for key in KEYS)
        assert metrics[topic]["saved_bytes"] < metrics[topic]["peft_saved_bytes"]
        model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / topic)
        assert any(p.abs().max() > 0 for name, p in model.named_parameters() if "lora_B" in name)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    captured = capsys.readouterr()
    assert "a step of each library, in turn: 100%" in captured.err
    out = captured.out
    assert out.startswith("This takes about five minutes on 2 idle cores; here are ")
    for text in ("tech_support: 7 examples", "My printer is", "capital of", "Held-out loss", "Compared with PEFT"):
        assert text in out
    compared = out[out.index("Compared with PEFT") :]
    assert "tech_support │" in compared and "…" not in compared, "whole in 80 columns"
    last = out.splitlines()[-1]
    assert last == (
        f"ask more: {sys.executable} -m pypeft_fast chat --model {tiny_model} "
        f"--adapter {tmp_path}/tech_support --adapter {tmp_path}/coding"
    )


def test_quick_is_shorter_and_compares_one_topic(demo, tiny_model, tmp_path, capsys):
    demo.main(["--quick", "--model", str(tiny_model), "--output", str(tmp_path)])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [topic for topic in demo.STEPS if "peft_seconds_per_step" in metrics[topic]] == ["tech_support"]
    assert all(metrics[topic]["eval_loss_after"] < metrics[topic]["eval_loss_before"] for topic in demo.STEPS)
    assert "about two minutes" in capsys.readouterr().out and demo.QUICK_STEPS < min(demo.STEPS.values())


def test_saved_bytes_count_shared_memory_once_and_parameters_never(demo):
    model = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8, requires_grad=True)  # 128 bytes
    with demo.counting_saved_bytes(model) as saved:
        model(x)
    assert saved == [128]  # x for the gradient of the weight; parameters are not counted
    with demo.counting_saved_bytes(model) as saved:
        model(x).sin() + x.view(8, 4).sin().view(4, 8)
    assert saved == [256]  # x, which two functions save, counts once; and the result of the layer
    with torch.no_grad(), demo.counting_saved_bytes(model) as saved:
        model(x).sin()
    assert saved == [0]
