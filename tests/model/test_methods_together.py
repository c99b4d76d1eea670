"""Adapters of several methods on one model: beside each other by name, and active together."""

import pytest
import torch

import pypeft_fast as pf
from tests.model.test_files import edit
from tests.model.zoo import assert_same, build, liven, logits

CONFIGS = {
    "lora": lambda: pf.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "dora": lambda: pf.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=False),
    "ia3": lambda: pf.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "bitfit": lambda: pf.BitFitConfig(target_modules=["q_proj", "o_proj"], add_missing=True),
    "bottleneck": lambda: pf.BottleneckConfig(placement="parallel", reduction_factor=4),
    "prompt": lambda: pf.PromptTuningConfig(num_virtual_tokens=3),
}


def everything():
    model = None
    for seed, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(seed)
        if model is None:
            model = pf.get_peft_model(build("llama"), config(), name).eval()
        else:
            model.add_adapter(name, config())
        model.set_adapter(name)
        liven(model, seed, name)
    return model


def test_switching_gives_what_each_gives_alone(tmp_path):
    model = everything()
    model.save_pretrained(tmp_path)
    trained = {}
    for name in CONFIGS:
        model.set_adapter(name)
        trained[name] = {n for n, p in model.named_parameters() if p.requires_grad}
        assert trained[name] and all(f".{name}" in n for n in trained[name])
        alone = pf.PeftModel.from_pretrained(build("llama"), tmp_path / name)
        assert_same(logits(model), logits(alone))
        assert (
            logits(model).shape != logits(build("llama")).shape
            or (logits(model) - logits(build("llama"))).abs().max() > 1e-3
        )
    with model.disable_adapter():
        assert_same(logits(model), logits(build("llama")))
    rows = ["lora", "__base__", "ia3"]
    mixed = logits(model, adapter_names=rows)
    for i, name in enumerate(rows):
        if name != "__base__":
            model.set_adapter(name)
        expected = logits(build("llama")) if name == "__base__" else logits(model)
        assert_same(mixed[i], expected[i])
    for name in list(CONFIGS)[:-1]:
        model.delete_adapter(name)
    assert list(model.peft_config) == ["prompt"] and logits(model).shape[1] == 10


def test_lora_with_bitfit_trains_and_merges():
    model = everything()
    model.set_adapter(["lora", "bitfit"])
    names = {n.split(".")[-2 if n.endswith("bitfit") else -3] for n, p in model.named_parameters() if p.requires_grad}
    assert names == {"lora_A", "lora_B", "bitfit_bias"}
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    W = layer.weight + layer.scaling["lora"] * layer.lora_B["lora"].weight @ layer.lora_A["lora"].weight
    x = torch.randn(2, 32)
    assert_same(layer(x), x @ W.t() + layer.bitfit_bias["bitfit"])
    expected = logits(model)
    expected.sum().backward()
    assert layer.bitfit_bias["bitfit"].grad.any() and layer.lora_B["lora"].weight.grad.any()
    model.merge_adapter()
    assert_same(logits(model), expected)
    model.unmerge_adapter()
    assert_same(logits(model), expected)


@pytest.mark.parametrize("place", ["self_attn.q_proj", "mlp.down_proj"])
def test_lora_dora_and_ia3_together_are_one_linear_map(place):
    model = everything()
    model.set_adapter(["lora", "ia3", "dora"])
    layer = model.base_model.model.model.layers[0].get_submodule(place)
    A, B = (getattr(layer, part)["lora"].weight for part in ("lora_A", "lora_B"))
    W, b = layer.weight + layer.scaling["lora"] * B @ A, layer.bias
    if place == "self_attn.q_proj":
        A, B = (getattr(layer, part)["dora"].weight for part in ("lora_A", "lora_B"))
        V = layer.weight + layer.scaling["dora"] * B @ A
        W = W + layer.lora_magnitude_vector["dora"].weight[:, None] * V / V.norm(dim=1, keepdim=True) - layer.weight
        W, b = layer.ia3_l["ia3"] * W, layer.ia3_l["ia3"].flatten() * b
    else:
        W = W * layer.ia3_l["ia3"]
    x = torch.randn(5, W.shape[1])
    assert_same(layer(x), torch.nn.functional.linear(x, W, b))
    expected = logits(model)
    model.merge_adapter()
    assert_same(logits(model), expected)


def test_dora_says_what_it_does_not_take(tmp_path):
    with pytest.raises(ValueError, match="matches model.embed_tokens, a Embedding; supported are torch.nn.Linear"):
        pf.get_peft_model(build("llama"), pf.LoraConfig(target_modules=["embed_tokens"], use_dora=True))
    model = pf.get_peft_model(build("llama"), pf.LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    edit(tmp_path, use_dora=True)
    with pytest.raises(ValueError, match="has no .*lora_magnitude_vector, which the config"):
        model.load_adapter(tmp_path, "default")
