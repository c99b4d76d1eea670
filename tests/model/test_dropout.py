"""Training with dropout compared with PEFT, whose masks are replaced by the masks of our layers."""

import copy

import peft
import pytest
import torch
from torch import nn

import pypeft_fast as pf
from pypeft_fast.ops import philox
from tests.model.zoo import IDS, TARGETS, adapted, assert_fused, assert_same, liven, logits, plain

P = 0.3
METHODS = {"lora": {}, "dora": dict(use_dora=True)}


class Replayed(nn.Module):
    """Replaces nn.Dropout in PEFT by the masks of the Philox stream with these seeds, one seed a call."""

    def __init__(self, seeds):
        super().__init__()
        self.seeds = list(seeds)

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1])
        mask = philox.packed_mask(*rows.shape, P, self.seeds.pop(0))
        return philox.dropped(rows, mask, P).view(x.shape)


def adapted_layers(model):
    kind = peft.tuners.lora.LoraLayer
    return {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, kind)}


def train_adapters(model):
    """Trains the adapter layers only, because the dropout of the model draws differently in each library."""
    model.eval()
    for layer in adapted_layers(model).values():
        layer.train()
    return model


@pytest.fixture
def seeds(monkeypatch):
    """{layer: the seeds that it drew}, for the layers that `watch` is called with."""
    drawn, running = {}, []
    draw = philox.draw_seed

    def recorded(*args):
        seed = draw(*args)
        drawn.setdefault(running[-1], []).append(seed)
        return seed

    def watch(layers):
        for name, layer in layers.items():
            layer.register_forward_pre_hook(lambda module, args, name=name: running.append(name))
        return drawn

    monkeypatch.setattr(philox, "draw_seed", recorded)
    return watch


def results(model):
    """(logits, {PEFT's name: gradient} of all parameters that train)."""
    output = logits(model)
    output.square().mean().backward()
    return output, {plain(n): p.grad for n, p in model.named_parameters() if p.requires_grad}


def assert_near(value, expected, ulps):
    atol = ulps * torch.finfo(expected.dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(value, expected, rtol=0, atol=atol)


def assert_same_gradients(gradients, wanted):
    assert set(gradients) == set(wanted) and gradients
    for name, grad in wanted.items():
        assert_near(gradients[name], grad, 4000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ours", ["model", "fused"])
@pytest.mark.parametrize("method", list(METHODS))
@pytest.mark.parametrize("kind", list(TARGETS))
def test_logits_and_gradients_are_pefts_under_our_masks(kind, method, ours, dtype, seeds):
    options = dict(lora_dropout=P) | METHODS[method]
    theirs = train_adapters(adapted(peft, kind, **options).to(dtype))
    if ours == "model":
        model = train_adapters(adapted(pf, kind, **options).to(dtype))
    else:
        model = copy.deepcopy(theirs)
        pf.fuse(model)
    drawn = seeds(adapted_layers(model))
    output, gradients = results(model)
    assert_fused(model)

    layers = adapted_layers(theirs)
    assert set(drawn) == set(layers) and all(len(of_layer) == 1 for of_layer in drawn.values())
    assert len({int(seed) for of_layer in drawn.values() for seed in of_layer}) == len(
        layers
    )  # each layer has its own mask
    for name, layer in layers.items():
        layer.lora_dropout["default"] = Replayed(drawn[name]).train()
    expected, wanted = results(theirs)
    assert not any(layer.lora_dropout["default"].seeds for layer in layers.values())

    assert_near(output, expected, 400)
    assert (output - logits(model.eval())).abs().max() > 1e-3  # elements were dropped
    assert_same_gradients(gradients, wanted)
    assert all(grad.any() for grad in gradients.values())


SEVERAL = {  # {case: (options of the second adapter, where the layers run)}
    "plain": (dict(), "fused"),
    "dropout": (dict(lora_dropout=P), "fused"),
    "dora": (dict(use_dora=True), "several active adapters of which one is DoRA"),
}


@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize("second", list(SEVERAL))
def test_several_active_adapters_train_as_in_peft(kind, second, seeds):
    """The updates of both adapters are added, each with a mask of its own. A case that cannot be fused runs in PEFT."""
    (options, where), outcomes, drawn = SEVERAL[second], [], {}
    for library in (pf, peft):
        model = adapted(library, kind)
        model.add_adapter("second", library.LoraConfig(r=3, lora_alpha=2, target_modules=TARGETS[kind], **options))
        model.set_adapter("second")
        liven(model, 5, "second")
        model.base_model.set_adapter(["default", "second"])
        train_adapters(model)
        if library is pf:
            drawn = seeds(adapted_layers(model))
        for name, layer in adapted_layers(model).items() if library is peft and drawn else ():
            layer.lora_dropout["second"] = Replayed([drawn[name][0][1:]]).train()
        torch.manual_seed(11)
        with pf.recording() as ran:
            outcomes.append((model, *results(model), [op for op, _ in ran]))
    (ours, output, gradients, ran), (theirs, expected, wanted, others) = outcomes
    assert_near(output, expected, 400)
    assert_same_gradients(gradients, wanted)
    layers = len(adapted_layers(theirs))
    assert pf.fuse(ours).calls() == {where: layers} and not others
    assert sum(op in ("lora_forward", "lora_linear") for op in ran) == (layers if where == "fused" else 0)
    assert len(drawn) == (layers if second == "dropout" else 0)


def test_several_adapters_with_dropout_drop_independently():
    model = adapted(pf, "llama", lora_dropout=P)
    model.add_adapter("second", pf.LoraConfig(r=4, target_modules=TARGETS["llama"], lora_dropout=P))
    model.set_adapter("second")
    liven(model, 5, "second")
    expected = {}
    for names in (["default"], ["second"], ["default", "second"]):
        model.base_model.set_adapter(names)
        model.eval()
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        x = torch.ones(4000, 32)
        expected[len(names), names[0]] = layer(x)
        layer.train()
        torch.manual_seed(2)
        y = layer(x)
        torch.testing.assert_close(y.mean(0), layer.eval()(x)[0], rtol=0, atol=0.2)  # unbiased
        assert y.std(0).min() > 0.05
    base = nn.functional.linear(x, layer.weight, layer.bias)
    parts = [expected[1, name] - base for name in ("default", "second")]
    assert_same(expected[2, "default"], base + sum(parts))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cast", [True, False])
def test_several_adapters_over_half_precision(dtype, cast):
    model = adapted(pf, "llama").to(dtype)
    config = pf.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model.add_adapter("second", config, autocast_adapter_dtype=cast)
    model.base_model.set_adapter(["default", "second"])
    layer, x = model.base_model.model.model.layers[0].self_attn.q_proj, torch.randn(5, 32).to(dtype)
    W, b = layer.weight.double(), layer.bias.double()
    for name in ("default", "second"):
        W = W + layer.scaling[name] * layer.lora_B[name].weight.double() @ layer.lora_A[name].weight.double()
    y, expected = layer(x), nn.functional.linear(x.double(), W, b)
    assert y.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=4 * eps * expected.abs().max().item())
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert_fused(model)
    for name in ("default", "second"):
        for held in (layer.lora_A[name].weight, layer.lora_B[name].weight):
            assert held.grad.dtype == held.dtype and held.grad.any()
