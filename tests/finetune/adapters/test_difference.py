"""The distances of two adapters against dense matrices in float64."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from pypeft_fast.finetune.adapters.difference import config_differences, update_distances
from pypeft_fast.finetune.adapters.files import read_adapter
from pypeft_fast.finetune.errors import UserError


def adapter(folder, rank, layers, N=24, K=16, **config):
    """Writes an adapter with random tensors; {layer: its update [N, K] in float64, scaled by alpha / r}."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    tensors, updates = {}, {}
    for layer in layers:
        A, B = torch.randn(rank, K), torch.randn(N, rank)
        tensors |= {f"base_model.model.{layer}.lora_A.weight": A, f"base_model.model.{layer}.lora_B.weight": B}
        updates[layer] = scaling * B.double() @ A.double()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return updates


def test_the_norms_are_those_of_the_dense_updates(tmp_path):
    layers = ["layers.0.q_proj", "layers.1.q_proj", "layers.0.v_proj"]
    first = adapter(tmp_path / "a", 3, layers)
    second = adapter(tmp_path / "b", 5, layers[:2], use_rslora=True)
    found = update_distances(tmp_path / "a", tmp_path / "b")
    zero = torch.zeros(24, 16).double()
    for name in ("q_proj", "v_proj"):
        mine = [layer for layer in layers if layer.endswith(name)]
        norms = [torch.stack([its.get(layer, zero) for layer in mine]).norm() for its in (first, second)]
        apart = torch.stack([first[layer] - second.get(layer, zero) for layer in mine]).norm()
        assert found[name].first == pytest.approx(float(norms[0]), rel=1e-12)
        assert found[name].second == pytest.approx(float(norms[1]), rel=1e-12)
        assert found[name].relative == pytest.approx(float(apart / norms[0]), rel=1e-12)
        assert found[name].layers == len(mine)


def test_an_adapter_is_no_distance_from_itself(tmp_path):
    adapter(tmp_path / "a", 4, ["layers.0.q_proj"])
    (its,) = update_distances(tmp_path / "a", tmp_path / "a").values()
    assert its.relative < 1e-14 and its.first == its.second > 0


def test_an_update_beside_none_is_infinitely_far(tmp_path):
    adapter(tmp_path / "a", 4, ["layers.0.q_proj"])
    adapter(tmp_path / "b", 4, ["layers.0.v_proj"])
    found = update_distances(tmp_path / "a", tmp_path / "b")
    assert found["q_proj"].relative == pytest.approx(1) and found["v_proj"].relative == math.inf


def test_the_fields_that_differ(tmp_path):
    adapter(tmp_path / "a", 4, ["q_proj"], target_modules=["q_proj", "v_proj"], peft_version="1")
    adapter(tmp_path / "b", 8, ["q_proj"], target_modules=["v_proj", "q_proj"], peft_version="2", use_dora=True)
    found = config_differences(read_adapter(tmp_path / "a"), read_adapter(tmp_path / "b"))
    assert found == {"r": (4, 8), "use_dora": (None, True)}


def test_adapters_that_cannot_be_compared(tmp_path):
    adapter(tmp_path / "a", 4, ["q_proj"])
    adapter(tmp_path / "b", 4, ["q_proj"], K=12)
    with pytest.raises(UserError, match="q_proj is 24 x 16 in .* and 24 x 12 in .*: the adapters belong to different"):
        update_distances(tmp_path / "a", tmp_path / "b")
    adapter(tmp_path / "c", 4, ["q_proj"], peft_type="IA3")
    with pytest.raises(UserError, match="is of the method 'IA3'; compared are LoRA and DoRA"):
        update_distances(tmp_path / "a", tmp_path / "c")
