"""pf.load_adapters into a bank of one layer: what a bank cannot hold is refused."""

import peft
import pytest
import torch

import pypeft_fast as pf
from tests.model.files.made import adapted, assert_untouched, edit, rewrite, state
from tests.model.zoo import build

LAYER = "model.layers.0.self_attn.q_proj"


def bank():
    torch.manual_seed(0)
    made = pf.nn.MultiLoRALinear.from_linear(build("llama").get_submodule(LAYER), max_adapters=2, max_rank=4)
    made.add("old", torch.randn(4, made.in_features), torch.randn(made.out_features, 4))
    return made


@pytest.fixture
def folder(tmp_path):
    adapted().save_pretrained(tmp_path)
    return tmp_path


def refused(folder, error, words, made=None, **options):
    made = made or bank()
    before = state(made)
    with pytest.raises(error, match=words):
        pf.load_adapters(made, folder, module=LAYER, **options)
    assert_untouched(made, before)
    assert made.adapter_names == ["old"]


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"])
def test_a_start_that_alters_the_base_weight(folder, start):
    edit(folder, init_lora_weights=start)
    with_config = {"lora_ga": dict(lora_ga_config={})}
    edit(folder, **with_config.get(start, {}))
    refused(folder, ValueError, f"init_lora_weights='{start}' alters .*path_initial_model_for_weight_conversion")


@pytest.mark.parametrize(
    "options,words",
    [
        (dict(use_qalora=True), "use_qalora=True: a MultiLoRALinear holds plain LoRA"),
        (dict(use_bdlora={"nblocks": 2}), "use_bdlora=.* holds plain LoRA"),
        (dict(bias="all"), "bias='all': the adapter replaces biases"),
        (dict(lora_alpha=float("nan")), "lora_alpha=nan must be a finite number"),
    ],
)
def test_a_config_that_is_not_plain(folder, options, words):
    edit(folder, **options)
    refused(folder, ValueError, words)


@pytest.mark.parametrize("start", [False, "gaussian", "eva", "orthogonal"])
def test_other_starts_are_plain(folder, start):
    edit(folder, init_lora_weights=start)
    assert pf.load_adapters(bank(), folder, module=LAYER).adapter_names == ["old", "default"]


def test_a_converted_adapter_is_plain(tmp_path):
    """What the error of a start that alters the base weight says to do."""
    options = dict(r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    torch.manual_seed(0)
    model = pf.get_peft_model(build("llama"), peft.LoraConfig(**options))
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    model.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    assert pf.load_adapters(bank(), tmp_path / "done", module=LAYER).adapter_names == ["old", "default"]


def test_a_tensor_that_a_bank_has_no_place_for(folder):
    rewrite(folder, lambda t: t | {f"base_model.model.{LAYER}.lora_B.bias": torch.zeros(32)})
    refused(folder, ValueError, "also has .*lora_B.bias")


def test_a_slot_of_nan_does_not_excuse_nan(folder):
    made = bank()
    with torch.no_grad():
        made.lora_A[0].fill_(float("nan"))
    rewrite(folder, lambda t: {key: tensor / 0 for key, tensor in t.items()})
    with pytest.raises(ValueError, match="values are NaN or infinite"):
        pf.load_adapters(made, folder, module=LAYER)
    assert made.adapter_names == ["old"]
