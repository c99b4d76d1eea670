"""Unmerging restores the bits of the base, and values that are written into a merged base are kept."""

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
def test_values_written_while_merged_are_kept(dora):
    """Values written through .data, as by an average of weights, and by a state dict."""
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


def test_attention_that_peft_merges_in_its_forward_is_not_changed():
    torch.manual_seed(0)
    base = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2)})
    model = pf.get_peft_model(base, pf.LoraConfig(target_modules=["attention"], init_lora_weights=False)).eval()
    layer, x = model.base_model.model.attention, torch.randn(3, 2, 16)
    outputs = [layer(x, x, x)[0] for _ in range(3)]
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(outputs[2], outputs[0])


def several(kind):
    """(model, layer, input, copy of the weight), with the adapters "x" and "y" both active."""
    model = nn.Sequential(nn.Linear(16, 12))
    for name in ("x", "y"):
        if kind == "ia3":
            config = pf.IA3Config(target_modules=["0"], feedforward_modules=[], init_ia3_weights=False)
        else:
            options = dict(r=4, target_modules=["0"], init_lora_weights=False, use_dora=kind == "dora")
            config = pf.LoraConfig(**options)
        model = pf.get_peft_model(model, config, name) if name == "x" else model
        if name == "y":
            model.add_adapter(name, config)
    model.base_model.set_adapter(["x", "y"])
    layer = model.eval().base_model.model[0]
    return model, layer, torch.randn(5, 16), layer.base_layer.weight.detach().clone()


KINDS = pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])


@KINDS
@pytest.mark.parametrize("again", [None, ["x"], ["x", "y"], ["y", "x"]], ids=str)
def test_merging_a_merged_adapter_changes_nothing(kind, again):
    model, layer, x, before = several(kind)
    model.merge_adapter(["x", "y"])
    merged = layer.base_layer.weight.detach().clone()
    for merge in (lambda: model.merge_adapter(again), lambda: layer.merge(adapter_names=again)):
        with pytest.warns(UserWarning, match="already merged"):
            merge()
        assert layer.merged_adapters == ["x", "y"] and torch.equal(layer.base_layer.weight, merged)
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, before)


@KINDS
def test_merging_a_merged_and_an_unmerged_adapter_adds_only_the_unmerged_one(kind):
    model, layer, x, before = several(kind)
    active = model(x)
    model.merge_adapter(["x"])
    with pytest.warns(UserWarning, match="additionally merging y"):
        model.merge_adapter(["x", "y"])
    assert layer.merged_adapters == ["x", "y"]
    torch.testing.assert_close(model(x), active, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, before)


@KINDS
def test_deleting_a_merged_adapter_of_a_model_is_refused_and_changes_nothing(kind):
    model, layer, x, before = several(kind)
    model.merge_adapter(["x", "y"])
    expected = model(x)
    with pytest.raises(ValueError, match="Cannot delete adapter.*'x'.* while they are merged"):
        model.delete_adapter("x")
    assert list(model.peft_config) == layer.merged_adapters == ["x", "y"] and torch.equal(model(x), expected)
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, before)
    model.delete_adapter("x")
    assert list(model.peft_config) == ["y"] and torch.equal(layer.base_layer.weight, before)


@pytest.mark.parametrize(
    "kind,written", [("lora", False), ("lora", True), ("dora", False), ("dora", True), ("ia3", False)]
)
def test_deleting_a_merged_adapter_of_a_layer_removes_it_from_the_weight(kind, written):
    """delete_adapter of transformers calls the layers directly, without a model of PEFT."""
    model, layer, x, before = several(kind)
    model.base_model.set_adapter(["y"])
    alone = model(x)
    model.merge_adapter(["x", "y"])
    if written:  # as by an average of weights
        layer.base_layer.weight.data += 1
    layer.delete_adapter("x")
    assert layer.merged_adapters == ["y"] and not layer.holds("x")
    if not written:
        torch.testing.assert_close(model(x), alone, rtol=1e-4, atol=1e-5)
    layer.delete_adapter("y")
    assert layer.merged_adapters == [] and not layer.merged
    torch.testing.assert_close(layer.base_layer.weight, before + written, rtol=0, atol=1e-5 if written else 0)


@pytest.mark.parametrize("first", [False, True], ids=["nothing merged before", "one merged before"])
def test_of_several_adapters_that_peft_merges_a_broken_one_leaves_the_layer(first):
    """With lora_bias the merge runs in PEFT, one adapter after the other."""
    model = linear(pf, ("plain",))
    for name in ("good", "broken"):
        options = dict(r=4, target_modules=["0"], init_lora_weights=False, lora_bias=True)
        model.add_adapter(name, pf.LoraConfig(**options))
    layer = model.base_model.model[0]
    own = [p.detach().clone() for p in (layer.base_layer.weight, layer.base_layer.bias)]
    if first:
        model.merge_adapter(["plain"])
    before = [p.detach().clone() for p in (layer.base_layer.weight, layer.base_layer.bias)]
    layer.lora_B["broken"].weight.data[0, 0] = float("nan")
    merges = [lambda names: layer.merge(True, names), lambda names: model.merge_adapter(names, safe_merge=True)]
    for merge in merges:
        with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
            merge(["good", "broken"])
        assert layer.merged_adapters == ["plain"] * first
        assert torch.equal(layer.base_layer.weight, before[0]) and torch.equal(layer.base_layer.bias, before[1])
    model.unmerge_adapter()
    assert torch.equal(layer.base_layer.weight, own[0]) and torch.equal(layer.base_layer.bias, own[1])
