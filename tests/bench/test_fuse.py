"""bench.fuse measures every method and mixed batches on a tiny model, and no fused model with wrong results."""

import json

import pytest

from tests.interpreter import python

FUSE = """
import sys, torch
import bench.fuse
from pypeft_fast.model.layers import lora as fused_lora
from pypeft_fast.model.layers.lora_rows import LoRARows
folder, model, *spoiled = sys.argv[1:4]
if "layer" in spoiled:
    right = fused_lora.lora_linear_unchecked
    fused_lora.lora_linear_unchecked = lambda *args: right(*args[:5], 0.5 * args[5], *args[6:])
if "rows" in spoiled:
    LoRARows.linear = lambda self, x, weight, bias, is_plain: torch.nn.functional.linear(x, weight, bias)
options = ["--model", model, "--seconds", "0", "--shape", "2", "9", "--adapters", *(sys.argv[4:] or ["3", "2"])]
bench.fuse.main([*options, "--threads", "1", "--output", folder])
"""


def test_fuse_is_measured(tiny_model, tmp_path):
    done = python("-c", FUSE, tmp_path, tiny_model)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "fuse.json").read_text())
    assert len(found["results"]) == 8 and list(found["rows"]) == ["2", "3"]
    for result in found["results"].values():
        assert result["saved"]["PEFT"] > 0 and min(*result["step"].values(), *result["token"].values()) > 0
    lora = found["results"]["LoRA bfloat16 p=0.05"]
    assert lora["saved"]["fused"] < 0.3 * lora["saved"]["PEFT"]
    text = (tmp_path / "fuse.md").read_text()
    assert text.count("\n| ---") == 3 and "pf.fuse itself, seconds" in text
    assert (tmp_path / "fuse.png").stat().st_size > 1000


def test_a_part_of_the_cases_is_measured(tiny_model, tmp_path):
    done = python("-c", FUSE, tmp_path, tiny_model, "", "--only", "IA3 float32")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "fuse.json").read_text())
    assert list(found["results"]) == ["IA3 float32"] and found["rows"] == {}
    told = [" in float32", "IA3 float32: compares", "IA3 float32: times"]  # minutes can pass before the first row
    assert [what for what in told if what not in done.stderr] == []


@pytest.mark.parametrize("what", ["layer", "rows"])
def test_no_speed_of_a_fused_model_that_is_wrong(what, tiny_model, tmp_path):
    done = python("-c", FUSE, tmp_path, tiny_model, what)
    assert done.returncode == 1 and "off PEFT's: no speed is reported" in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())
