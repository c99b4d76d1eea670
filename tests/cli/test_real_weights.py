"""Every subcommand with the real weights of SmolLM2, in as few steps as show that it works."""

import json
from pathlib import Path

import httpx

from pypeft_fast.cli.main import COMMANDS
from tests.real_weights import needs_smollm2

pytestmark = needs_smollm2
FAQ = Path(__file__).parents[2] / "examples" / "faq.jsonl"
MODEL = ("--model", "smollm2")
ASKED = ("--prompt", "How long does delivery take?", "--max-new-tokens", 8)


def test_every_subcommand(command, serving, tmp_path):
    seen = set()

    def ran(*arguments):
        code, out, err = command(*arguments)
        assert code == 0, err
        seen.add(arguments[0])
        return out

    data, adapter = tmp_path / "data.jsonl", tmp_path / "desk"
    data.write_text("\n".join(FAQ.read_text().splitlines()[:8]))
    few = ("--max-steps", 3, "--learning-rate", 2e-3, "--no-report")
    ran("finetune", *MODEL, "--data", data, *few, "--output", adapter)
    metrics = json.loads((adapter / "metrics.json").read_text())
    assert metrics["loss_history"]["train"][-1][1] < metrics["loss_history"]["train"][0][1]
    losses = json.loads(ran("evaluate", *MODEL, "--adapter", adapter, "--data", data, "--json"))["losses"]
    assert losses["desk"] < losses["base"] - 0.2
    taught = ran("chat", *MODEL, "--adapter", adapter, *ASKED)
    assert taught != ran("chat", *MODEL, *ASKED)
    assert "4,884,480" in ran("inspect", adapter)
    ran("merge", *MODEL, "--adapter", adapter, "--output", tmp_path / "merged")
    assert ran("chat", "--model", tmp_path / "merged", *ASKED) == taught
    assert "all-linear" in ran("adapters", "list", adapter)
    ran("adapters", "export", adapter, *MODEL, "--output", tmp_path / "desk.gguf")
    plan = ("--method", "lora", "--targets", "all-linear", "--rank", 16, "--base", "dense", "--max-length", 64)
    assert "4,884,480" in ran("plan", *MODEL, "--cpu", "4GiB", *plan, "--no-probe")
    assert "finetune" in ran("advise", *MODEL, "--data", data, "--targets", "q,v", "--targets", "mlp")
    assert "lora_linear" in ran("info")
    _, url = serving("--adapter", f"desk={adapter}", model="smollm2")
    body = {"model": "desk", "messages": [{"role": "user", "content": ASKED[1]}], "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()["choices"][0]["message"]["content"]
    assert answer and answer.strip() in taught
    assert seen | {"serve"} == set(COMMANDS)
