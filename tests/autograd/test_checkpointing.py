"""Selective checkpointing of every function: the gradients are those without checkpointing, or there is an error."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import pypeft_fast as pf

K = 8
SAVE, AGAIN = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE
PRODUCTS = torch.ops.aten.mm.default, torch.ops.aten.addmm.default
POLICIES = {
    "everything": lambda context, op, *args, **kwargs: SAVE,
    "our ops": lambda context, op, *args, **kwargs: SAVE if op.namespace == "pypeft_fast" else AGAIN,
    "products": lambda context, op, *args, **kwargs: SAVE if op in PRODUCTS else AGAIN,
}


def bottleneck(**options):
    network = pf.nn.Bottleneck(K, K, 4, **options)
    nn.init.normal_(network.up.weight)
    return network


def lora(**options):
    layer = pf.nn.LoRALinear(K, K, r=2, **options)
    nn.init.normal_(layer.lora_B)
    return layer


LAYERS = {
    "linear": lambda: nn.Linear(K, K),  # PyTorch's layer, for comparison
    "lora": lora,
    "lora dropout": functools.partial(lora, lora_dropout=0.3),
    "dora": functools.partial(lora, use_dora=True),
    "dora dropout": functools.partial(lora, use_dora=True, lora_dropout=0.3),
    "ia3": functools.partial(pf.nn.IA3Linear, K, K, init_ia3_weights=False),
    "ia3 feedforward": functools.partial(pf.nn.IA3Linear, K, K, feedforward=True, init_ia3_weights=False),
    "bitfit": functools.partial(pf.nn.BitFitLinear, K, K),
    "bottleneck": bottleneck,
    "bottleneck dropout": functools.partial(bottleneck, dropout=0.3, layer_norm=True),
}
EVERY = pytest.mark.parametrize("name", list(LAYERS))
KERNEL = pytest.mark.parametrize("kernel", ["reference", "blas"])
SHAPE = pytest.mark.parametrize("shape", [(5, K), (2, 3, K)], ids=str)
POLICY = pytest.mark.parametrize("policy", list(POLICIES))


def gradients(layer, x, after, run):
    torch.manual_seed(3)
    run(lambda x: after(layer(x)).tanh(), x).sum().backward()
    leaves = [x, *(p for p in layer.parameters() if p.requires_grad)]
    found = [t.grad for t in leaves]
    for t in leaves:
        t.grad = None
    return found


def both(name, shape, policy, after):
    """(gradients without checkpointing, gradients with checkpointing)."""
    layer, x = LAYERS[name](), torch.randn(shape, requires_grad=True)
    contexts = functools.partial(create_selective_checkpoint_contexts, POLICIES[policy])
    again = functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)
    return gradients(layer, x, after, lambda f, x: f(x)), gradients(layer, x, after, again)


@EVERY
@KERNEL
@SHAPE
@POLICY
def test_gradients_are_those_without_checkpointing(name, kernel, shape, policy):
    with pf.using(kernel):
        without, checkpointed = both(name, shape, policy, lambda y: y * 3)
    assert all(map(torch.equal, without, checkpointed)) and all(g.any() for g in without)


@EVERY
@KERNEL
@SHAPE
@POLICY
def test_an_output_changed_in_place_is_noticed(name, kernel, shape, policy):
    """If a kept tensor has been changed in place, PyTorch raises an error, and no gradient is wrong."""
    with pf.using(kernel):
        try:
            without, checkpointed = both(name, shape, policy, lambda y: y.mul_(3))
        except RuntimeError as error:
            assert "cached during selective activation checkpoint has been mutated" in str(error)
        else:
            assert all(map(torch.equal, without, checkpointed))
