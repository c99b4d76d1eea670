"""Merged, disabled and row by row: what each does while another is in force is what PEFT does."""

import warnings

import peft
import pytest
import torch

import pypeft_fast as pf
from tests.model.test_adapters import two
from tests.model.zoo import IDS, adapted, assert_same, build, liven, logits


def test_set_adapter_takes_merged_adapters_out_first():
    model = two()
    first = logits(model)
    model.set_adapter("second")
    second = logits(model)
    assert (second - first).abs().max() > 1e-3
    model.merge_adapter()
    with pytest.warns(UserWarning, match="set_adapter takes the merged adapters out of the weights first"):
        model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_adapter("second")
    assert torch.equal(logits(model), second)


def test_an_adapter_set_while_disabled_is_not_hidden_by_the_merged_one():
    model = two()
    first = logits(model)
    model.merge_adapter()
    with model.disable_adapter():
        model.set_adapter("second")
        assert torch.equal(logits(model), logits(build("llama")))
    assert not any(layer.merged for layer in model.base_model.mergeable())
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


def test_one_name_a_row():
    for library in (pf, peft):
        model = adapted(library, "llama")
        for names in (["default"], ["default"] * 6, []):
            with pytest.raises(ValueError):
                logits(model, adapter_names=names)
    model = adapted(pf, "llama")
    with pytest.raises(ValueError, match="adapter_names has 1 names for a batch of 3 rows; give one a row"):
        model(IDS, adapter_names=["default"])
    embedded = model.get_input_embeddings()(IDS)
    with pytest.raises(ValueError, match="adapter_names has 1 names for a batch of 3 rows"):
        model(inputs_embeds=embedded, adapter_names=["default"])
    with pytest.raises(TypeError, match="adapter_names='default' must be a list of names, one a row"):
        logits(model, adapter_names="default")
    options = dict(attention_mask=torch.ones_like(IDS), max_new_tokens=2, pad_token_id=0)
    for names in (["default"], ["default"] * 6):
        with pytest.raises(ValueError, match=f"adapter_names has {len(names)} names for a batch of 3 rows"):
            model.generate(IDS, adapter_names=names, num_beams=2, **options)
    assert model.generate(IDS, adapter_names=["default"] * 3, num_beams=2, **options).shape == (3, IDS.shape[1] + 2)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changes_the_weight_is_added_to_the_frozen_one(kind, init):
    modules = ["q_proj", "c_attn"]
    config = pf.LoraConfig(r=4, target_modules=modules, init_lora_weights=init)
    expected = logits(build(kind))
    for merged in (False, True):
        model = adapted(pf, kind, target_modules=modules)
        if merged:
            model.merge_adapter()
        model.add_adapter("changing", config)
        assert all(bool(layer.merged) == merged for layer in model.base_model.mergeable())
        model.unmerge_adapter()
        model.set_adapter("changing")
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4)
        liven(model, 3, "changing")
        assert (logits(model) - expected).abs().max() > 1e-3
