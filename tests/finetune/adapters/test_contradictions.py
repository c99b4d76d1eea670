"""Contradictions between the tensors of an adapter and its config."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pypeft_fast.finetune.adapters.describe import describe

NAME = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
FIRST = NAME.format(0, "q", "A")


@pytest.fixture
def folder(tiny_adapter, tmp_path):
    return shutil.copytree(tiny_adapter, tmp_path / "adapter")


def change(folder, tensors=None, **config):
    """Rewrites the adapter's files, with some tensors and some entries of the config replaced."""
    path = folder / "adapter_model.safetensors"
    save_file(load_file(path) | (tensors or {}), path)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def test_an_adapter_as_it_is_written(folder):
    assert describe(folder)["broken"] is None


KINDS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_values_that_are_not_finite(folder, dtype):
    tensor = torch.ones(3, 32, dtype=torch.float64)
    tensor[1, 2] = torch.finfo(dtype).max
    tensor[1, 3] = torch.finfo(dtype).min
    change(folder, {FIRST: tensor.to(dtype)})
    assert describe(folder)["broken"] is None
    for value in [float("nan")] + ([-float("inf")] if dtype != torch.float8_e4m3fn else []):
        tensor[2, 5] = value
        change(folder, {FIRST: tensor.to(dtype)})
        assert describe(folder)["broken"] == [f"{FIRST} has NaN or infinite values"]


def test_another_rank_than_the_config_s(folder):
    change(folder, r=4)
    first, *more = describe(folder)["broken"]
    assert " and 7 more have rank 3, where the config says 4" in first and not more
    change(folder, r=3)
    second = NAME.format(1, "v", "B")
    change(folder, {second: torch.ones(16, 2)})
    assert describe(folder)["broken"] == [f"{second} has rank 2, where the config says 3"]


def test_a_rank_of_some_modules(folder):
    change(folder, r=8, rank_pattern={r"layers\.\d\.self_attn\.q_proj": 3, "v_proj": 3, "proj": 5})
    assert describe(folder)["broken"] is None
    change(folder, rank_pattern={"self_attn.q_proj": 3})
    assert len(describe(folder)["broken"]) == 1


@pytest.mark.parametrize("rank", [0, "3", None, 2.5])
def test_a_rank_that_is_none(folder, rank):
    change(folder, r=rank)
    assert describe(folder)["broken"] == [f"r in the config is {rank!r}, not a whole number above 0"]


@pytest.mark.parametrize("patterns", [["q_proj"], {"q_proj": "3"}, {"(": 3}, {"q_proj": 0}])
def test_patterns_that_are_none(folder, patterns):
    change(folder, rank_pattern=patterns)
    assert "rank_pattern in the config is " in describe(folder)["broken"][0]


def test_experts_in_one_tensor(folder):
    tensors = {
        name: tensor.repeat(4, 1) if "lora_A" in name else tensor.repeat(1, 4)
        for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    change(folder, tensors)
    assert describe(folder)["broken"]
    change(folder, target_parameters=["mlp.experts.down_proj"])
    assert describe(folder)["broken"] is None


def test_virtual_tokens(tmp_path):
    save_file({"prompt_embeddings": torch.ones(6, 8)}, tmp_path / "adapter_model.safetensors")
    for said, broken in (
        (6, None),
        (3, None),
        (4, ["prompt_embeddings has 6 virtual tokens, where the config says 4"]),
    ):
        config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": said}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        assert describe(tmp_path)["broken"] == broken
