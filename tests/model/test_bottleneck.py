"""Bottleneck adapters on whole models: where they are, what they compute there, what trains, and their files."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pypeft_fast as pf
from tests.model.zoo import assert_same, build, liven, logits

ENDS = {  # of attention, and of the feedforward part with the layer that takes its input, in a block
    "llama": ["self_attn.o_proj"], "gpt2": ["attn.c_proj"], "bert": ["attention.output.dense"],
    "t5": ["SelfAttention.o", "EncDecAttention.o"],
}  # fmt: skip
FEEDFORWARD = {
    "llama": ("mlp.gate_proj", "mlp.down_proj"), "gpt2": ("mlp.c_fc", "mlp.c_proj"),
    "bert": ("intermediate.dense", "output.dense"), "t5": ("DenseReluDense.wi", "DenseReluDense.wo"),
}  # fmt: skip
CASES = [(kind, placement) for kind in ENDS for placement in ("houlsby", "pfeiffer", "parallel")]


def adapted(kind, **options):
    model = pf.get_peft_model(build(kind), pf.BottleneckConfig(reduction_factor=4, **options))
    assert_same(logits(model.eval()), logits(build(kind)))  # a new one changes nothing
    liven(model)
    return model


def expected_places(kind, placement):
    feedforward = FEEDFORWARD[kind][1]
    found = []
    for name, _ in build(kind).named_modules():
        inside = any(name.endswith(f".{end}") for end in ENDS[kind])
        if name.endswith(f".{feedforward}") and not inside or inside and placement == "houlsby":
            found.append(name)
    return found


@pytest.mark.parametrize("kind,placement", CASES)
def test_places_values_and_gradients(kind, placement):
    model = adapted(kind, placement=placement, scaling=0.5, activation="silu", layer_norm=kind == "bert")
    places = expected_places(kind, placement)
    parts = ["down.weight", "down.bias", "up.weight", "up.bias", *(["norm.weight", "norm.bias"] * (kind == "bert"))]
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {f"base_model.model.{place}.bottleneck.default.{p}" for place in places for p in parts}
    base = build(kind)
    inputs = {}
    copies = {}
    for place in places:
        # The formula again, by hooks on a bare model and plain PyTorch.
        network = model.base_model.model.get_submodule(place).bottleneck["default"]
        values = {n: p.detach().clone().requires_grad_() for n, p in network.named_parameters()}
        copies |= {f"base_model.model.{place}.bottleneck.default.{n}": p for n, p in values.items()}
        layer = base.get_submodule(place)

        def add(module, args, y, values=values, place=place):
            x = inputs.pop(place) if placement == "parallel" else y
            if "norm.weight" in values:
                x = F.layer_norm(x, x.shape[-1:], values["norm.weight"], values["norm.bias"])
            inner = F.silu(F.linear(x, values["down.weight"], values["down.bias"]))
            return y + 0.5 * F.linear(inner, values["up.weight"], values["up.bias"])

        layer.register_forward_hook(add)
        if placement == "parallel":
            source = base.get_submodule(place.replace(FEEDFORWARD[kind][1], FEEDFORWARD[kind][0]))
            source.register_forward_pre_hook(lambda module, args, place=place: inputs.update({place: args[0]}))
    outputs = [logits(m) for m in (model, base)]
    assert_same(*outputs)
    assert (outputs[0] - logits(build(kind))).abs().max() > 1e-3
    for output in outputs:
        output.square().mean().backward()
    for name, parameter in trained.items():
        grad = copies[name].grad
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-6 + 1e-4 * grad.abs().max().item())
    with model.disable_adapter():
        assert_same(logits(model), logits(build(kind)))
    assert_same(logits(model.unload()), logits(build(kind)))


@pytest.mark.parametrize("kind,placement", CASES)
def test_files(kind, placement, tmp_path):
    model = adapted(kind, placement=placement)
    model.save_pretrained(tmp_path)
    assert_same(logits(pf.PeftModel.from_pretrained(build(kind), tmp_path)), logits(model))


def test_dropout_and_checkpointing():
    from tests.model.zoo import IDS

    grads = []
    for checkpointing in (False, True):
        model = adapted("llama", placement="parallel", dropout=0.3).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
        torch.manual_seed(4)
        assert not torch.equal(logits(model), logits(model))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_generation_uses_the_adapters():
    from tests.model.zoo import IDS

    model = adapted("llama", placement="parallel")
    options = dict(attention_mask=torch.ones_like(IDS), max_new_tokens=5, do_sample=False, pad_token_id=0)
    found = model.generate(input_ids=IDS, **options)
    assert torch.equal(found, model.generate(input_ids=IDS, use_cache=False, **options))
    assert not torch.equal(found, build("llama").generate(input_ids=IDS, **options))


def test_mistakes():
    for options, words in (
        (dict(placement="serial"), "placement='serial' must be one of houlsby, pfeiffer, parallel"),
        (dict(activation="sin"), "activation='sin' must be one of relu"),
        (dict(reduction_factor=0), "reduction_factor=0 must be a positive number"),
        (dict(dropout=1.0), r"p=1.0 must be in \[0, 1\)"),
    ):
        with pytest.raises(ValueError, match=words):
            pf.BottleneckConfig(**options)
    with pytest.raises(ValueError, match="no transformer block is found in Sequential"):
        pf.get_peft_model(nn.Sequential(nn.Linear(2, 2)), pf.BottleneckConfig())
    model = adapted("llama")
    with pytest.raises(ValueError, match="the bottleneck adapter 'default' cannot be merged into a weight"):
        model.merge_adapter()
    mixed = logits(model, adapter_names=["default", "__base__", "default"])
    assert_same(mixed[1], logits(build("llama"))[1])
    assert_same(mixed[0], logits(model)[0])
