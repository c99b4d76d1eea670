"""bench.model measures the frozen model, PEFT and our layers on a tiny model, and no adapter with wrong results."""

import json

from tests.interpreter import python

MODEL = """
import sys
import bench.model
from pypeft_fast.model.layers import lora as fused_lora
folder, model, *spoiled = sys.argv[1:]
if spoiled:
    right = fused_lora.lora_linear_unchecked
    fused_lora.lora_linear_unchecked = lambda *args: right(*args[:5], 0.5 * args[5], *args[6:])
bench.model.main(["--model", model, "--seconds", "0", "--shape", "2", "9", "--threads", "1", "--output", folder])
"""


def test_a_model_is_measured(tiny_model, tmp_path):
    done = python("-c", MODEL, tmp_path, tiny_model)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "model.json").read_text())
    assert list(found["results"]) == ["float32", "bfloat16"]
    for step, saved, token in found["results"].values():
        assert set(step) == set(saved) == set(token) == {"frozen", "PEFT", "ours"}
        assert min(*step.values(), *token.values()) > 0 and saved["frozen"] < saved["ours"] < saved["PEFT"]
    assert (tmp_path / "model.md").read_text().count("\n| ---") == 2
    assert (tmp_path / "model.png").stat().st_size > 1000


def test_no_speed_of_an_adapter_that_is_wrong(tiny_model, tmp_path):
    done = python("-c", MODEL, tmp_path, tiny_model, "spoiled")
    assert done.returncode == 1 and "off PEFT's: no speed is reported" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
