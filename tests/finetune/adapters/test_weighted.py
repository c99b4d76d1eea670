"""Combinations of adapters: equal to PEFT's own over the loaded base model; what a sum would lose is refused."""

import copy
import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from pypeft_fast.finetune.adapters.combinations import COMBINATIONS, OF_ONE_RANK, is_pruned
from pypeft_fast.finetune.adapters.weighted import save_combined
from pypeft_fast.finetune.errors import UserError

WEIGHTS = [0.7, -0.3]


@pytest.fixture(scope="session")
def base(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def save_random(base, folder, kind=peft.LoraConfig, **fields):
    """Saves an adapter with random values, of rank 4 for q_proj and v_proj unless the fields say otherwise."""
    if kind is peft.LoraConfig:
        fields = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | fields
    model = peft.get_peft_model(copy.deepcopy(base), kind(task_type="CAUSAL_LM", **fields))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(base, tmp_path):
    """adapter(name, **fields) -> the folder of `save_random`."""
    return lambda name, **fields: save_random(base, tmp_path / name, **fields)


@pytest.fixture(scope="module")
def pairs(base, tmp_path_factory):
    """{whether both ranks are 4: the folders of two adapters, with other targets and one of them with rsLoRA}."""
    root = tmp_path_factory.mktemp("pairs")
    first = save_random(base, root / "one", lora_alpha=3)
    other = {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}
    return {rank == 4: [first, save_random(base, root / f"two-{rank}", r=rank, **other)] for rank in (2, 4)}


def loaded(base, folders):
    """PEFT's model over a copy of the base model, with adapters a0, a1, ..."""
    model = peft.PeftModel.from_pretrained(copy.deepcopy(base), folders[0], adapter_name="a0")
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, f"a{number}")
    return model


def pefts_own(base, folders, weights, **options):
    model = loaded(base, folders)
    torch.manual_seed(3)
    model.base_model.add_weighted_adapter([f"a{i}" for i in range(len(folders))], weights, "sum", **options)
    return peft.get_peft_model_state_dict(model, adapter_name="sum")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("method", COMBINATIONS)
def test_the_values_are_those_of_peft_over_the_loaded_base(pairs, base, tmp_path, method):
    folders = pairs[method in OF_ONE_RANK]
    density = 0.4 if is_pruned(method) else None
    save_combined(folders, WEIGHTS, method, tmp_path / "sum", density=density, seed=3)
    expected = pefts_own(base, folders, WEIGHTS, combination_type=method, density=density, svd_full_matrices=False)
    assert_same(load_file(tmp_path / "sum" / "adapter_model.safetensors"), expected)


def test_three_adapters_of_ia3_are_summed_as_peft_does(adapter, base, tmp_path):
    fields = {"kind": peft.IA3Config, "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
    folders = [adapter(name, **fields) for name in ("one", "two", "three")]
    save_combined(folders, [0.5, 0.3, 0.2], "linear", tmp_path / "sum")
    assert_same(load_file(tmp_path / "sum" / "adapter_model.safetensors"), pefts_own(base, folders, [0.5, 0.3, 0.2]))
    peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "sum")


@pytest.mark.parametrize("rslora", [False, True])
def test_a_cat_loaded_by_peft_has_the_weighted_sum_of_the_updates(adapter, base, tmp_path, rslora):
    """rsLoRA in the first adapter: PEFT's result then has sqrt(r) as its scaling, and this file's is 1."""
    folders = [adapter("one", r=2, use_rslora=rslora), adapter("two", rank_pattern={"q_proj": 3})]
    save_combined(folders, WEIGHTS, "cat", tmp_path / "sum")
    found = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "sum").merge_and_unload()
    both = loaded(base, folders)
    layers = {name: its for name, its in both.named_modules() if isinstance(its, peft.tuners.lora.LoraLayer)}
    assert len(layers) == 4
    for name, layer in layers.items():
        update = sum(w * layer.get_delta_weight(f"a{i}") for i, w in enumerate(WEIGHTS))
        merged = found.get_submodule(name.removeprefix("base_model.model.")).weight
        torch.testing.assert_close(merged, layer.base_layer.weight + update, rtol=1e-5, atol=1e-6)


def test_a_layer_of_gpt2_keeps_its_fan_in_fan_out(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    own = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=32))
    for name in ("one", "two"):
        config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
        peft.get_peft_model(copy.deepcopy(own), config).save_pretrained(tmp_path / name)
    folders = [tmp_path / "one", tmp_path / "two"]
    save_combined(folders, WEIGHTS, "svd", tmp_path / "sum", rank=3)
    assert json.loads((tmp_path / "sum" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    expected = pefts_own(own, folders, WEIGHTS, combination_type="svd", svd_rank=3, svd_full_matrices=False)
    found = load_file(tmp_path / "sum" / "adapter_model.safetensors")
    for name, values in expected.items():
        torch.testing.assert_close(found[name].abs(), values.abs())  # the sign of a singular vector is free


IA3 = {"kind": peft.IA3Config}
REFUSED = {
    "two ranks": ({}, {"r": 2}, "linear", r"has r = 4, .*two r = 2; cat and svd combine any ranks"),
    "a pattern": ({}, {"rank_pattern": {"q_proj": 2}}, "ties", "two has a rank_pattern; cat"),
    "DoRA": ({}, {"use_dora": True}, "cat", "two has use_dora = True, which a weighted sum of adapters would lose"),
    "biases": ({}, {"bias": "lora_only"}, "cat", "two has bias = 'lora_only'"),
    "a head": ({"modules_to_save": ["lm_head"]}, {}, "cat", r"one has modules_to_save = \['lm_head'\]"),
    "PiSSA": ({"init_lora_weights": "pissa"}, {}, "cat", "one has init_lora_weights = 'pissa'"),
    "some blocks": ({"layers_to_transform": [0]}, {}, "cat", "layers_to_transform is .*0.* in .*one and None in .*two"),
    "an expression": ({"target_modules": ".*q_proj"}, {}, "cat", "is an expression in .*one and a list in .*two"),
    "two methods": ({}, {"kind": peft.IA3Config}, "cat", "one is of the method LORA and .*two of IA3"),
    "IA3 by cat": (IA3, IA3, "cat", "`method` cat is for LoRA, .* of IA3; give linear"),
    "IA3 elsewhere": (
        {"kind": peft.IA3Config},
        {"kind": peft.IA3Config, "target_modules": ["q_proj"], "feedforward_modules": []},
        "linear",
        "scale different layers",
    ),
    "IA3 with a sum of weights that is not 1": (IA3, IA3, "linear", "the sum of `weights` is 0.4 and must be 1"),
    "a rank above a layer's": (
        {},
        {"rank_pattern": {"q_proj": 17}},
        "svd",
        r"the largest rank of the adapters, 17, is above 16, .*layers.0.self_attn.v_proj \[16, 32\]; give a `rank` of",
    ),
    "prompts": (
        {"kind": peft.PromptTuningConfig, "num_virtual_tokens": 2},
        {},
        "cat",
        "one is of the method 'PROMPT_TUNING'; combined are adapters of LoRA, or of IA3",
    ),
    "embeddings": ({"target_modules": ["embed_tokens"]}, {}, "cat", "embed_tokens.* combined are adapters of linear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_sum_would_lose_is_refused(adapter, tmp_path, case):
    first, second, method, says = REFUSED[case]
    folders = [adapter("one", **first), adapter("two", **second)]
    with pytest.raises(UserError, match=says):
        save_combined(folders, WEIGHTS, method, tmp_path / "sum", density=0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_a_rank_of_svd_is_at_most_that_of_the_smallest_layer(adapter, base, tmp_path):
    folders = [adapter("one", target_modules=["down_proj", "v_proj"]), adapter("two")]
    with pytest.raises(UserError, match=r"`rank` 17 is above 16, .*self_attn.v_proj \[16, 32\]"):
        save_combined(folders, WEIGHTS, "ties_svd", tmp_path / "sum", density=0.5, rank=17)
    assert not (tmp_path / "sum").exists()
    save_combined(folders, WEIGHTS, "ties_svd", tmp_path / "sum", density=0.5, rank=16)
    peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "sum")


def test_a_result_with_infinite_values_is_an_error_and_leaves_no_folder(adapter, tmp_path):
    with pytest.raises(UserError, match=r"`weights` 1e\+39 1 give a broken adapter: .*NaN or infinite values"):
        save_combined([adapter("one"), adapter("two")], [1e39, 1], "cat", tmp_path / "sum")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_adapters_of_two_sizes_of_model_are_refused(adapter, tmp_path):
    folders = [adapter("one"), adapter("two")]
    path = folders[1] / "adapter_model.safetensors"
    tensors = {name: values[:, :-1] if "lora_A" in name else values for name, values in load_file(path).items()}
    save_file({name: values.contiguous() for name, values in tensors.items()}, path)
    with pytest.raises(UserError, match="`adapter` .*two cannot be loaded|one cannot be loaded"):
        save_combined(folders, WEIGHTS, "cat", tmp_path / "sum")


def test_a_tensor_that_the_config_does_not_target_is_refused(adapter, tmp_path):
    folders = [adapter("one"), adapter("two")]
    config = folders[0] / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["q_proj"]}))
    with pytest.raises(UserError, match="`adapter` .*one cannot be loaded"):
        save_combined(folders, WEIGHTS, "cat", tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
