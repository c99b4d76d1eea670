"""Deferred initialisation: layers from the meta device get memory by to_empty, then values by reset_parameters."""

import functools
import math

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

import pypeft_fast as pf

K, N = 24, 17
LAYERS = {
    "lora": functools.partial(pf.nn.LoRALinear, K, N, r=4),
    "dora": functools.partial(pf.nn.LoRALinear, K, N, r=4, use_dora=True),
    "dora half": functools.partial(pf.nn.LoRALinear, K, N, r=4, use_dora=True, dtype=torch.bfloat16),
    "ia3": functools.partial(pf.nn.IA3Linear, K, N),
    "ia3 random": functools.partial(pf.nn.IA3Linear, K, N, init_ia3_weights=False),
    "ia3 feedforward": functools.partial(pf.nn.IA3Linear, K, N, feedforward=True),
    "bitfit": functools.partial(pf.nn.BitFitLinear, K, N),
    "bottleneck": functools.partial(pf.nn.Bottleneck, K, K, 6),
    "bottleneck norm": functools.partial(pf.nn.Bottleneck, K, K, 6, layer_norm=True),
}
EVERY = pytest.mark.parametrize("name", list(LAYERS))


def as_frameworks_do(module):
    """Calls reset_parameters as FSDP and torchtitan do: on every module with parameters, parents before children."""
    for part in module.modules():
        if list(part.parameters(recurse=False)):
            part.reset_parameters()


@EVERY
@pytest.mark.parametrize("reset", [lambda module: module.reset_parameters(), as_frameworks_do])
@pytest.mark.parametrize("merged", [False, True])
def test_to_empty_and_reset_parameters_give_a_new_layer(name, reset, merged):
    module = LAYERS[name](device="meta")
    assert all(p.is_meta for p in module.parameters())
    if merged and hasattr(module, "merge"):
        module.merge()
    module.to_empty(device="cpu")
    for p in module.parameters():
        p.data.fill_(7)
    reset(module)
    new = LAYERS[name]()
    assert not getattr(module, "merged", False)
    for (key, p), (other, q) in zip(module.named_parameters(), new.named_parameters(), strict=True):
        assert key == other and p.dtype == q.dtype and p.requires_grad == q.requires_grad and not (p == 7).any()
        constant = q.min() == q.max()
        assert torch.equal(p, q) if constant else 0.3 < p.float().std() / q.float().std() < 3, key
    if name.startswith("dora"):
        lengths = module.weight.float().norm(dim=1)
        torch.testing.assert_close(module.lora_magnitude_vector.detach(), lengths)


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_the_values_are_those_of_a_new_layer_bit_for_bit(name):
    torch.manual_seed(5)
    new = LAYERS[name]()
    module = LAYERS[name](device="meta").to_empty(device="cpu")
    torch.manual_seed(5)
    module.reset_parameters()
    assert all(map(torch.equal, module.parameters(), new.parameters()))
    assert module.lora_A.abs().max() <= 1 / math.sqrt(K) and not module.lora_B.any()


@EVERY
@pytest.mark.parametrize("train", [False, True])
def test_forward_and_backward_on_meta(name, train):
    with torch.device("meta"):
        module = LAYERS[name]()
    x = torch.empty(2, 5, K, device="meta", dtype=getattr(module, "weight", torch.empty(())).dtype, requires_grad=train)
    with torch.set_grad_enabled(train):
        y = module(x)
    assert y.is_meta and y.shape == (2, 5, K if name.startswith("bottleneck") else N)
    if train:
        y.sum().backward()
        assert x.grad.is_meta and all(p.grad.is_meta for p in module.parameters() if p.requires_grad)


@EVERY
def test_values_assigned_to_a_layer_on_meta(name):
    new, module = LAYERS[name](), LAYERS[name](device="meta")
    module.load_state_dict(new.state_dict(), assign=True)
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in new.parameters()]
    x = torch.randn(3, K, dtype=next(new.parameters()).dtype if name == "dora half" else None)
    assert torch.equal(module(x), new(x))


def test_a_merged_adapter_is_unmerged_first():
    module = pf.nn.LoRALinear(K, N)
    nn.init.normal_(module.lora_B)
    weight = module.weight
    module.merge()
    module.reset_parameters()
    assert module.weight is weight and not module.lora_B.any()


def test_layers_with_parameters_in_inner_modules_are_offloaded_whole():
    """By accelerate, with the option that docs/limits.md names."""
    x, bank = torch.randn(4, K), pf.nn.MultiLoRALinear(K, K, max_adapters=1, max_rank=2)
    bank.add("a", torch.randn(2, K), torch.randn(K, 2))
    network = pf.nn.Bottleneck(K, K, 4, layer_norm=True)
    nn.init.normal_(network.up.weight)
    for layer, rows in ((bank, [["a", None] * 2]), (network, [])):
        expected = layer(x, *rows)
        cpu_offload(layer, torch.device("cpu"), preload_module_classes=["Bottleneck", "MultiLoRALinear"])
        assert all(p.is_meta for p in layer.parameters()) and torch.equal(layer(x, *rows), expected)
