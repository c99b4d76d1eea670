"""The bench of adapters' files runs on small models, and reports no speed of a load that gives other values."""

import json

import pytest
import torch

import pypeft_fast as pf
from bench import adapter_files

SHORT = ["--rounds", "1", "--layers", "1", "--small-layers", "1", "--adapters", "2"]


@pytest.fixture(autouse=True)
def small(monkeypatch, set_threads):
    sizes = dict(hidden_size=32, intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, vocab_size=64)
    for name in ("LARGE", "SMALL"):
        monkeypatch.setattr(adapter_files, name, sizes)


def test_the_tables_are_written(tmp_path):
    adapter_files.main([*SHORT, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "adapter_files.json").read_text())
    what = ["save_pretrained", "warm", "dropped"]
    assert len(found["targets"]) == 8 and found["bytes"] > 1000 and all(w in str(found["targets"]) for w in what)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_files.json", "adapter_files.md"]
    text = (tmp_path / "adapter_files.md").read_text()
    assert "2 adapters of a folder" in text and "load_adapter over a running adapter" in text


def test_no_speed_of_a_load_that_gives_other_values(tmp_path, monkeypatch):
    real = pf.PeftModel.from_pretrained

    def spoiled(*args, **options):
        model = real(*args, **options)
        with torch.no_grad():
            next(iter(adapter_files.adapters_values(model).values())).add_(1)
        return model

    monkeypatch.setattr(pf.PeftModel, "from_pretrained", spoiled)
    with pytest.raises(AssertionError, match="lora_A"):
        adapter_files.main([*SHORT, "--output", str(tmp_path)])
    assert not list(tmp_path.iterdir())
