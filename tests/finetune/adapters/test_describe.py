"""The facts that are read from the folder of an adapter."""

import json
import shutil

import pytest

from pypeft_fast.finetune.adapters.describe import describe
from pypeft_fast.finetune.errors import UserError


def test_of_an_adapter_with_and_without_a_run_s_numbers(tiny_adapter, tmp_path):
    folder = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    facts = describe(folder)
    assert (facts["method"], facts["rank"], facts["alpha"], facts["steps"]) == ("LORA", 3, 6, None)
    assert facts["targets"] == ["q_proj", "v_proj"] and facts["held-out loss"] is None
    assert facts["parameters"] == f"{2 * 3 * (32 + 32 + 32 + 16):,} in 8 tensors, F32"
    metrics = {"steps": 7, "eval_loss_before": 4.0, "eval_loss_after": 3.5, "eval_examples": 2}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    assert describe(folder)["held-out loss"] == "4.000 before, 3.500 after, on 2 examples"
    assert describe(folder)["steps"] == 7


def test_no_folder_or_no_adapter_in_it(tmp_path):
    with pytest.raises(UserError, match="none: no such folder"):
        describe(tmp_path / "none")
    with pytest.raises(UserError, match="holds no whole adapter: adapter_config.json is missing"):
        describe(tmp_path)
