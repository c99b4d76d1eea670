"""The script for PEFT runs with both libraries on SmolLM2, prints the same lines and writes the same files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.real_weights import needs_smollm2

ROOT = Path(__file__).parents[2]
OURS, PEFT = "from pypeft_fast import ", "from peft import "


def run(script, folder):
    """Runs the script; returns its stdout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, script, "--output", folder]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@needs_smollm2
def test_only_the_import_line_differs(tmp_path):
    script = ROOT / "examples" / "quickstart.py"
    text = script.read_text()
    assert text.count(OURS) == 1
    assert "peft_fast" not in text.replace(OURS, "").replace("pypeft_fast.finetune.base_models", "")
    other = tmp_path / "quickstart_peft.py"
    other.write_text(text.replace(OURS, PEFT))

    ours, theirs = run(script, tmp_path / "ours"), run(other, tmp_path / "theirs")
    assert ours == theirs
    assert ours.startswith("trainable params: 460,800 || all params: 134,975,808 || trainable%: 0.3414\n")
    assert ours.count("The capital of France is Paris.") == 2

    configs = [json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("ours", "theirs")]
    for field in ("r", "lora_alpha", "lora_dropout", "bias", "task_type", "peft_type", "base_model_name_or_path"):
        assert configs[0][field] == configs[1][field]
    assert sorted(configs[0]["target_modules"]) == sorted(configs[1]["target_modules"]) == ["q_proj", "v_proj"]
    files = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("ours", "theirs")]
    assert files[0].keys() == files[1].keys() and len(files[0]) == 120
    for key, tensor in files[0].items():
        other = files[1][key]
        assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
        if ".lora_B." in key:
            assert torch.count_nonzero(tensor) == torch.count_nonzero(other) == 0
        else:  # random values of the same distribution
            assert float(tensor.std()) == pytest.approx(float(other.std()), rel=0.1)
