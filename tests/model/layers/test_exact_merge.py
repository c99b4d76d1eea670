"""Merging keeps the base's bits, and what else writes into a merged base is not lost."""

import peft
import pytest
import torch
from torch import nn

import pypeft_fast as pf


def linear(library, adapters=("default",), **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12))
    for i, name in enumerate(adapters):
        config = library.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False, **options)
        if i == 0:
            model = library.get_peft_model(model, config, name)
        else:
            model.add_adapter(name, config)
    if options.get("use_dora"):
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.data *= 1.3
    return model.eval()


def test_several_dora_adapters_merge_to_what_they_are_when_active():
    x, outcomes = torch.randn(5, 16), []
    for library in (peft, pf):
        model = linear(library, ("x", "y"), use_dora=True)
        model.base_model.set_adapter(["x", "y"])
        active = model(x)
        model.merge_adapter(["x", "y"])
        torch.testing.assert_close(model(x), active, rtol=1e-4, atol=1e-5)
        outcomes.append(model(x))
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_written_while_merged_stays(dora):
    """By an averaging of weights through .data, by a state dict."""
    model = linear(pf, use_dora=dora)
    weight = model.base_model.model[0].base_layer.weight
    before = weight.detach().clone()
    model.merge_adapter()
    weight.data += 1
    model.unmerge_adapter()
    torch.testing.assert_close(weight, before + 1, rtol=0, atol=1e-5)
    assert not model.base_model.model[0].merged_adapters
    model.merge_adapter()
    model.unmerge_adapter()
    torch.testing.assert_close(weight, before + 1, rtol=0, atol=1e-5)


def test_another_method_s_layer_may_merge_into_the_same_weight():
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(16, 12))
    config = pf.LoraConfig(r=4, target_modules=["0"], init_lora_weights=False)
    model = pf.get_peft_model(base, config, "x", mixed=True)
    model.add_adapter("y", pf.LoHaConfig(r=4, target_modules=["0"], init_weights=False))
    model.set_adapter(["x", "y"])
    x = torch.randn(5, 16)
    expected = model(x)
    for _ in range(5):
        model.merge_adapter()
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        model.unmerge_adapter()
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_a_merged_model_may_be_unfused(dora):
    model = linear(peft, use_dora=dora)
    pf.fuse(model)
    layer, x = model.base_model.model[0], torch.randn(5, 16)
    before, expected = layer.base_layer.weight.detach().clone(), model(x)
    model.merge_adapter()
    pf.unfuse(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(layer.base_layer.weight, before, rtol=0, atol=1e-5)
    layer.base_layer.weight.data += 1
    pf.fuse(model)
    model.merge_adapter()
    model.unmerge_adapter()
    torch.testing.assert_close(layer.base_layer.weight, before + 1, rtol=0, atol=1e-5)


def test_attention_that_peft_merges_in_its_forward_stays_as_it_is():
    torch.manual_seed(0)
    base = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)})
    model = pf.get_peft_model(base, pf.LoraConfig(target_modules=["attention"], init_lora_weights=False)).eval()
    layer, x = model.base_model.model.attention, torch.randn(3, 2, 16)
    outputs = [layer(x, x, x)[0] for _ in range(3)]
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])
