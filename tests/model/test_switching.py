"""Merging, disabling and switching in combination have the same effects as in PEFT."""

import warnings

import peft
import pytest
import torch
from safetensors.torch import load_file

import pypeft_fast as pf
from tests.model.test_adapters import layers, two
from tests.model.zoo import adapted, assert_same, build, logits


def test_set_adapter_takes_merged_adapters_out_first():
    model = two()
    first = logits(model)
    model.set_adapter("second")
    second = logits(model)
    assert (second - first).abs().max() > 1e-3
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging"):
        model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_adapter("second")
    assert torch.equal(logits(model), second)


@pytest.mark.filterwarnings("ignore:Adapter cannot be set when the model is merged")
def test_set_adapter_while_disabled_unmerges_the_merged_adapter():
    model = two()
    first = logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        model.set_adapter("second")
        assert torch.equal(logits(model), logits(build("llama")))
    assert not any(layer.merged for layer in layers(model))
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


@pytest.mark.parametrize("kind,options", [("llama", {}), ("bert", {"modules_to_save": ["classifier"]})])
def test_disabled_adapters_are_off_for_every_row(kind, options):
    names = ["default", "__base__", "default"]
    for library in (pf, peft):
        model = adapted(library, kind, **options)
        assert (logits(model, adapter_names=names) - logits(build(kind))).abs().max() > 1e-3
        with model.disable_adapter():
            assert_same(logits(model, adapter_names=names), logits(build(kind)))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_switching_chooses_the_copy_of_a_saved_module_too(kind):
    head, outcomes = {"llama": "lm_head", "bert": "classifier"}[kind], []
    for library in (pf, peft):
        model = adapted(library, kind, modules_to_save=[head])
        targets = {"llama": ["k_proj"], "bert": ["query"]}[kind]
        model.add_adapter("second", peft.LoraConfig(r=2, target_modules=targets, modules_to_save=[head]))
        outputs = [logits(model)]
        model.set_adapter("second")
        outputs.append(logits(model))
        trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trains and not any(".default." in name for name in trains)
        outcomes.append((outputs, trains))
    (ours, names), (theirs, their_names) = outcomes
    assert names == their_names
    for a, b in zip(ours, theirs, strict=True):
        assert_same(a, b)
    assert_same(ours[1], logits(build(kind)))  # the second adapter is new
    assert (ours[0] - ours[1]).abs().max() > 1e-3


def test_each_of_several_ia3_adapters_has_a_file_of_its_own(tmp_path):
    model = pf.get_peft_model(build("llama"), pf.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    model.add_adapter("second", pf.IA3Config(target_modules=["v_proj"], feedforward_modules=[]))
    model.save_pretrained(tmp_path)
    for folder, target in ((tmp_path, "k_proj"), (tmp_path / "second", "v_proj")):
        saved = load_file(folder / "adapter_model.safetensors")
        assert len(saved) == 2 and all(key.endswith(f"{target}.ia3_l") for key in saved)
        pf.PeftModel.from_pretrained(build("llama"), folder)


@pytest.mark.skipif(not hasattr(pf, "MontecloraConfig"), reason="this PEFT has no MonteCLoRA")
def test_tensors_that_a_method_has_only_in_training_do_not_prevent_loading(tmp_path):
    config = pf.LoraConfig(target_modules=["q_proj"], monteclora_config=pf.MontecloraConfig())
    pf.get_peft_model(build("llama"), config).save_pretrained(tmp_path)
    assert any("sampler" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    for is_trainable in (False, True):
        pf.PeftModel.from_pretrained(build("llama"), tmp_path, is_trainable=is_trainable)
