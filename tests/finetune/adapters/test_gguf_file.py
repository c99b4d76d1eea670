"""An exported adapter against llama.cpp's names, keys and order of rows, read back with the package gguf."""

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, LlamaConfig, Qwen3Config

from pypeft_fast.finetune import base_models
from pypeft_fast.finetune.adapters.gguf_file import interleaved, write_gguf
from pypeft_fast.finetune.errors import UserError
from tests.finetune.adapters.test_difference import adapter

SIZES = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4)
LLAMA = LlamaConfig(**SIZES)
Q, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"


def read(path):
    """({key: value}, {name: values}) of a GGUF file."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return keys, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def test_keys_names_and_values(tmp_path):
    updates = adapter(tmp_path / "a", 3, [Q, DOWN])
    assert write_gguf(tmp_path / "a", LLAMA, tmp_path / "a.gguf") == 4
    keys, tensors = read(tmp_path / "a.gguf")
    assert keys["general.type"] == "adapter" and keys["adapter.type"] == "lora"
    assert keys["general.architecture"] == "llama" and keys["adapter.lora.alpha"] == 8.0
    assert set(tensors) == {f"blk.{place}.weight.lora_{ab}" for place in ("1.attn_q", "0.ffn_down") for ab in "ab"}
    assert tensors["blk.0.ffn_down.weight.lora_a"].shape == (3, 16)
    for name, layer, order in (("blk.0.ffn_down", DOWN, lambda w: w), ("blk.1.attn_q", Q, lambda w: interleaved(w, 4))):
        A, B = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
        of_llama_cpp = keys["adapter.lora.alpha"] / B.shape[1] * B.astype("float64") @ A.astype("float64")
        np.testing.assert_allclose(of_llama_cpp, order(updates[layer]).numpy(), rtol=1e-5)


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"alpha_pattern": {"down_proj": 24}}])
def test_one_alpha_stands_for_every_layers_scaling(tmp_path, options):
    adapter(tmp_path / "a", 4, [DOWN], **options)
    write_gguf(tmp_path / "a", LLAMA, tmp_path / "a.gguf")
    keys, tensors = read(tmp_path / "a.gguf")
    B = load_file(tmp_path / "a" / "adapter_model.safetensors")[f"base_model.model.{DOWN}.lora_B.weight"]
    scaled = keys["adapter.lora.alpha"] / 4 * tensors["blk.0.ffn_down.weight.lora_b"]
    np.testing.assert_allclose(scaled, (4.0 if "use_rslora" in options else 6.0) * B.numpy(), rtol=1e-6)


def test_other_architectures_keep_the_order_of_rows(tmp_path):
    updates = adapter(tmp_path / "a", 3, [Q])
    write_gguf(tmp_path / "a", Qwen3Config(**SIZES), tmp_path / "a.gguf")
    keys, tensors = read(tmp_path / "a.gguf")
    assert keys["general.architecture"] == "qwen3"
    update = 8 / 3 * tensors["blk.1.attn_q.weight.lora_b"] @ tensors["blk.1.attn_q.weight.lora_a"]
    np.testing.assert_allclose(update, updates[Q].numpy(), rtol=1e-3, atol=1e-5)


def test_the_order_of_rows_is_that_of_a_gguf_file_of_smollm2():
    try:
        path = base_models.smollm2_gguf()
    except UserError as error:
        pytest.skip(str(error))
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    ours = load_file(base_models.smollm2_path() / "model.safetensors")
    for layer, name, heads in ((0, "q", 9), (29, "k", 3)):
        stored = theirs[f"blk.{layer}.attn_{name}.weight"]
        dense = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
        mine = ours[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
        assert torch.equal(interleaved(mine, heads), dense) and not torch.equal(mine, dense)


def test_what_cannot_be_exported(tmp_path):
    def refused(says, config=LLAMA, layers=(Q,), **options):
        name = f"a{len(list(tmp_path.iterdir()))}"
        adapter(tmp_path / name, 3, layers, **options)
        with pytest.raises(UserError, match=says):
            write_gguf(tmp_path / name, config, tmp_path / "a.gguf")
        assert not list(tmp_path.glob("*gguf*"))

    refused("is of the method DORA", use_dora=True)
    refused("is of the method IA3", peft_type="IA3")
    refused("`model` is of the type gpt2; exported are adapters for llama, mistral", config=GPT2Config())
    refused("the tensor base_model.model.strange.lora_A.weight has no place", layers=["strange"])
    refused("has no place", config=LlamaConfig(**SIZES, tie_word_embeddings=True), layers=["lm_head"])
