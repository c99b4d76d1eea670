"""Adapters of several methods active together on one model, added in any order: values, training, merging, files."""

import itertools

import peft
import pytest
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer

from pypeft_fast.model.mixed_model import PeftMixedModel
from pypeft_fast.model.tuners import BitFitConfig, BottleneckConfig
from pypeft_fast.model.tuners.bitfit_layer import BitFitLayer
from pypeft_fast.model.tuners.bottleneck_layer import BottleneckLinear
from tests.model.zoo import IDS, assert_same, build, liven, logits

LORA = dict(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
CONFIGS = {
    "l1": lambda: peft.LoraConfig(**LORA),
    "dora": lambda: peft.LoraConfig(
        r=4, target_modules=["q_proj", "down_proj"], use_dora=True, init_lora_weights=False
    ),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["q_proj", "down_proj"], init_weights=False),
    "bits": lambda: BitFitConfig(target_modules=["q_proj", "o_proj", "down_proj"], add_missing=True),
    "neck": lambda: BottleneckConfig(reduction_factor=4),
    "beside": lambda: BottleneckConfig(placement="parallel", reduction_factor=4),
}
ORDERS = list(itertools.permutations(["l1", "bits", "neck"]))


def mixed(names, kind=PeftMixedModel):
    """A model with these adapters, added in this order, all active; their values do not depend on the order."""
    model, base = None, build("llama")
    for name in names:
        torch.manual_seed(3)
        if model is None:
            model = kind(base, CONFIGS[name](), name).eval()
        else:
            model.add_adapter(name, CONFIGS[name]())
    model.set_adapter(list(names))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                generator = torch.Generator().manual_seed(sum(map(ord, name.replace(".base_layer", ""))))
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def layers(nest):
    """{kind: layer} of the adapter layers that are nested around one module."""
    found = {}
    while hasattr(nest, "base_layer"):
        found |= {kind: nest for kind in (BitFitLayer, BottleneckLinear, LoraLayer) if isinstance(nest, kind)}
        nest = nest.base_layer
    return found | {"base": nest}


def formula(nest, x, names, source=None):
    """N(V x + b') in plain PyTorch, from the tensors of the layers."""
    found = layers(nest)
    W, b = found["base"].weight, found["base"].bias
    V = W
    lora = found.get(LoraLayer)
    for name in names:
        if name not in ("l1", "dora"):
            continue
        update = lora.scaling[name] * lora.lora_B[name].weight @ lora.lora_A[name].weight
        if name == "dora":
            lengths = lora.lora_magnitude_vector[name].weight / (W + update).norm(dim=1)
            V = V + lengths[:, None] * (W + update) - W
        else:
            V = V + update
    if "bits" in names:
        b = found[BitFitLayer].bitfit_bias["bits"]
    y = F.linear(x, V, b)
    neck = found.get(BottleneckLinear)
    for name in names:
        if neck is not None and name in neck.bottleneck_adapter_down:
            inner = F.relu(neck.bottleneck_adapter_down[name](y if name == "neck" else source))
            y = y + neck.bottleneck_adapter_up[name](inner)
    return y


@pytest.mark.parametrize("names", [*ORDERS, ("bits", "dora"), ("dora", "bits")])
def test_values_in_every_order(names):
    model = mixed(names)
    x = torch.randn(2, 5, 48)
    block = model.base_model.model.model.layers[0]
    down = block.mlp.down_proj
    assert_same(down(x), formula(down, x, names))
    assert_same(block.self_attn.q_proj(x[..., :32]), formula(block.self_attn.q_proj, x[..., :32], names))
    assert_same(logits(model), logits(mixed(sorted(names))))
    for active in names:
        model.set_adapter(active)
        assert_same(down(x), formula(down, x, [active]))
    with model.disable_adapter():
        assert_same(logits(model), logits(build("llama")))


@pytest.mark.parametrize("names", [("l1", "beside", "bits"), ("bits", "beside", "l1")])
def test_a_parallel_bottleneck_among_others(names):
    model = mixed(names)
    block = model.base_model.model.model.layers[0].mlp
    x = torch.randn(2, 5, 32)
    inner = F.silu(block.gate_proj(x)) * block.up_proj(x)
    assert_same(block(x), formula(block.down_proj, inner, names, source=x))


@pytest.mark.parametrize("names", [("l1", "bits"), ("bits", "l1"), ("dora", "bits"), ("loha", "bits", "l1")])
def test_merging(names):
    model = mixed(names)
    expected = logits(model)
    model.merge_adapter()
    assert_same(logits(model), expected)
    model.unmerge_adapter()
    assert_same(logits(model), expected)
    merged = model.merge_and_unload()
    assert_same(logits(merged), expected)
    assert [type(m) for m in merged.modules()] == [type(m) for m in build("llama").modules()]


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("order", list(itertools.permutations(["l1", "bits"])))
def test_unmerging_is_exact_in_whatever_order_they_were_merged(order, cast):
    model = mixed(["l1", "bits"])
    before = {n: p.clone() for n, p in model.named_parameters()}
    for name in order:
        model.merge_adapter([name])
    if cast:
        model.double()
    with torch.no_grad(), model.disable_adapter():
        logits(model)  # unmerges each nested layer, the outermost first
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[n].to(after[n]), after[n]) for n in before)


def test_merging_a_bottleneck_is_refused_before_anything_is_merged():
    model = mixed(["l1", "neck"])
    expected = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="the bottleneck adapter 'neck' cannot be merged"):
            merge()
    assert torch.equal(logits(model), expected)
    model.merge_adapter(["l1"])
    assert_same(logits(model), expected)
    assert_same(logits(model.unload()), logits(mixed(["l1"]).merge_and_unload()))


def test_what_trains_after_each_adding():
    """The active adapter keeps training, and a new adapter does not train. Two LoRA adapters share a layer."""
    model = PeftMixedModel(build("llama"), CONFIGS["bits"](), "bits")
    for name in ("l1", "neck", "l2"):
        model.add_adapter(name, CONFIGS["l1" if name == "l2" else name]())
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        assert trained and all(n.endswith(".bitfit_bias.bits") for n in trained)
    nest = model.base_model.model.model.layers[0].mlp.down_proj
    assert set(layers(nest)[LoraLayer].lora_A) == {"l1", "l2"} and nest.base_layer.base_layer is layers(nest)[LoraLayer]


def test_training_and_deleting():
    model = mixed(["bits", "l1", "neck"])
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[-2] if "bitfit" in n else n.split(".")[-3] for n in trained} == {
        "bitfit_bias", "lora_A", "lora_B", "bottleneck_adapter_down", "bottleneck_adapter_up",
    }  # fmt: skip
    model.train()(input_ids=IDS, labels=IDS).loss.backward()
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []
    model.set_adapter("l1")
    assert all("lora_" in n for n, p in model.named_parameters() if p.requires_grad)
    model.eval().delete_adapter("bits")
    assert sorted(model.peft_config) == ["l1", "neck"] and not any("bits" in n for n in model.state_dict())
    model.set_adapter("l1")
    assert_same(logits(model), logits(mixed(["l1"])))


@pytest.mark.parametrize("order", ORDERS)
def test_loading(order, tmp_path):
    """Tensors of a file are loaded by name, whatever layers are nested; loading again replaces the values."""
    for name in order:
        saved = peft.get_peft_model(build("llama"), CONFIGS[name](), name)
        liven(saved, adapter=name)
        saved.save_pretrained(tmp_path)
    model = PeftMixedModel.from_pretrained(build("llama"), tmp_path / order[0], order[0])
    for name in order[1:]:
        model.load_adapter(tmp_path / name, name)
    for _ in range(2):
        for name in order:
            model.set_adapter(name)
            alone = peft.PeftModel.from_pretrained(build("llama"), tmp_path / name)
            assert_same(logits(model), logits(alone))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.zero_()
        for name in order:
            model.load_adapter(tmp_path / name, name)
    model.set_adapter(list(order))
    found = model.base_model.model.model.layers[0].mlp.down_proj
    assert [type(found), type(found.base_layer)] == [BottleneckLinear, type(found.base_layer)]
    assert isinstance(found.base_layer, BitFitLayer)


def test_unsupported_mixtures_are_errors():
    model = mixed(["bits"])
    model.add_adapter("second", CONFIGS["bits"]())
    with pytest.raises(ValueError, match="bits and second have a bias for the same layer"):
        model.set_adapter(["bits", "second"])
    for options, words in ((dict(bias="all"), "bias='all'"), (dict(lora_bias=True), "lora_bias=True")):
        with pytest.raises(ValueError, match=f"{words} of adapter 'l' changes the biases"):
            model.add_adapter("l", peft.LoraConfig(target_modules=["q_proj"], **options))
    assert list(model.peft_config) == ["bits", "second"]
    with pytest.raises(ValueError, match="there is such an adapter already"):
        model.add_adapter("bits", CONFIGS["l1"]())
    with pytest.raises(ValueError, match="peft_type. .IA3. is not compatible with the .PeftMixedModel"):
        model.add_adapter("ia3", peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="is not compatible with the `PeftMixedModel`"):
        peft.get_peft_model(build("llama"), CONFIGS["bits"](), mixed=True)
    lora = PeftMixedModel(build("llama"), peft.LoraConfig(target_modules=["q_proj"], bias="all"))
    with pytest.raises(ValueError, match="bias='all' of adapter 'default' changes the biases"):
        lora.add_adapter("bits", CONFIGS["bits"]())


def test_a_mixture_of_pefts_own_methods_equals_pefts():
    names = ["l1", "loha"]
    assert_same(logits(mixed(names)), logits(mixed(names, peft.PeftMixedModel)))
    assert isinstance(mixed(names), peft.PeftMixedModel)
