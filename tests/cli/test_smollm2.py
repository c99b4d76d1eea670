"""All subcommands on real weights: training, inspection, evaluation, a merge, and an answer."""

import json
import re
from pathlib import Path

import pytest

from pypeft_fast.finetune import base_models
from tests.real_weights import needs_smollm2

pytestmark = [pytest.mark.slow, needs_smollm2]
FAQ = Path(__file__).parents[2] / "examples" / "faq.jsonl"
WHICH = ("base model", "with the adapter")  # captions of answers in report.html


def test_from_data_to_a_merged_model(command, tmp_path):
    lines = FAQ.read_text().splitlines()
    facts = [line for k in range(3) for line in lines[24 * k : 24 * k + 6]]  # three phrasings of six facts
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held-out.jsonl"
    train.write_text("\n".join(facts[:12]))
    held_out.write_text("\n".join(facts[12:]))
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    common = ["--model", "smollm2", "--data", train, "--eval-data", held_out, "--output", adapter]
    code, out, err = command("finetune", *common, "--epochs", 7, "--eval-every", 7)
    assert code == 0, err
    assert "21 steps of 4 examples, learning rate 0.0005" in out
    metrics = json.loads((adapter / "metrics.json").read_text())
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"] - 1
    assert [step for step, _ in metrics["loss_history"]["held_out"]] == [0, 7, 14, 21]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    seven = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert sorted(config["target_modules"]) == seven
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in (adapter / "README.md").read_text()
    assert str(base_models.cache_folder()) not in (adapter / "README.md").read_text() + json.dumps(config)
    assert not list(adapter.glob("checkpoint-*"))

    code, out, err = command("evaluate", "--model", "smollm2", "--adapter", adapter, "--data", held_out, "--json")
    assert code == 0, err
    assert json.loads(out)["losses"]["adapter"] == pytest.approx(metrics["eval_loss_after"], abs=1e-3)

    assert command("merge", "--model", "smollm2", "--adapter", adapter, "--output", merged)[0] == 0
    question = ["--prompt", "How long does delivery take?", "--max-new-tokens", 24]
    with_adapter = command("chat", "--model", "smollm2", "--adapter", adapter, *question)[1]
    assert command("chat", "--model", merged, *question)[1] == with_adapter
    assert command("chat", "--model", "smollm2", *question)[1] != with_adapter


def test_a_config_a_schedule_and_a_report(command, tmp_path):
    """A run from a config file, packed, whose page has answers of the base model and of the adapter; its own config
    repeats it."""
    adapter, config = tmp_path / "adapter", tmp_path / "run.yaml"
    config.write_text(
        f"model: smollm2\ndata: {FAQ}\noutput: {adapter}\nmax_steps: 12\nschedule: linear\nwarmup: 2\n"
        "weight_decay: 0.01\nlearning_rate: 2e-3\npacking: true\nmax_length: 128\neval_every: 6\n"
    )
    code, out, err = command("finetune", "--config", config, "--report", "--report-examples", 2)
    assert code == 0, err
    metrics = json.loads((adapter / "metrics.json").read_text())
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"] - 1
    predicted = float(re.search(r"predicted peak memory: ([\d.]+) GB", out)[1])
    assert predicted == pytest.approx(metrics["peak_memory_bytes"] / 1e9, rel=0.2)
    assert "65 examples to train on in " in out and "lora of rank 16 on 210 layers" in out
    page = (adapter / "report.html").read_text()
    assert page.count('class="card example"') == 2 and "no answer" not in page
    base, ours = (re.findall(rf'{which}</div><div class="text">(.*?)</div>', page, re.DOTALL) for which in WHICH)
    assert len(base) == 2 and all(a != b and a.strip() and b.strip() for a, b in zip(base, ours, strict=True))
    again = command("finetune", "--config", adapter / "finetune.json", "--output", tmp_path / "b", "--max-steps", 2)
    assert again[0] == 0
    losses = [
        json.loads((tmp_path / n / "metrics.json").read_text())["loss_history"]["train"] for n in ("adapter", "b")
    ]
    assert losses[1][0] == losses[0][0]  # the first step is the same


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_over_a_quantised_base(command, tmp_path, quantize):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    common = ["--model", "smollm2", "--data", FAQ, "--output", tmp_path / "adapter", "--quantize", quantize]
    code, out, err = command("finetune", *common, "--max-steps", 8, "--eval-every", 8, "--dtype", "bfloat16")
    assert code == 0, err
    metrics = json.loads((tmp_path / "adapter" / "metrics.json").read_text())
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"] - 0.3  # 0.43 over the dense weight
    assert f"peak memory: {metrics['peak_memory_bytes'] / 1e9:.2f} GB" in out
