"""merge: completely or not at all, once, and refused if the weight is computed."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import pypeft_fast as pf

K, N = 24, 17


def lora(**options):
    module = pf.nn.LoRALinear(K, N, r=4, **options)
    nn.init.normal_(module.lora_B)
    if module.use_dora:
        nn.init.uniform_(module.lora_magnitude_vector, 1, 3)
    return module


LAYERS = {
    "lora": lora,
    "dora": lambda: lora(use_dora=True),
    "ia3": lambda: pf.nn.IA3Linear(K, N, init_ia3_weights=False),
    "ia3 feedforward": lambda: pf.nn.IA3Linear(K, N, feedforward=True, init_ia3_weights=False),
}
EVERY = pytest.mark.parametrize("name", list(LAYERS))
COMPUTED = {
    "weight_norm": lambda module: nn.utils.parametrizations.weight_norm(module),
    "old weight_norm": lambda module: torch.nn.utils.weight_norm(module),
    "spectral_norm": lambda module: nn.utils.parametrizations.spectral_norm(module),
    "pruned": lambda module: prune.l1_unstructured(module, "weight", amount=0.3),
}


def own(module, how):
    if how == "pruned":
        prune.remove(module, "weight")
    elif how == "old weight_norm":
        torch.nn.utils.remove_weight_norm(module)
    else:
        nn.utils.parametrize.remove_parametrizations(module, "weight")
    if not isinstance(module.weight, nn.Parameter):  # these tools leave a plain tensor for a frozen weight
        value = module.weight
        del module.weight
        module.weight = nn.Parameter(value, requires_grad=False)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@EVERY
@pytest.mark.parametrize("how", list(COMPUTED))
def test_a_computed_weight_is_refused_and_the_adapter_stays(name, how):
    module, x = LAYERS[name](), torch.randn(5, K)
    COMPUTED[how](module)
    module.eval()  # spectral_norm changes the weight in training mode
    before, state = module(x), {k: v.clone() for k, v in module.state_dict().items()}
    for _ in range(2):
        with pytest.raises(RuntimeError, match="merge: weight is not a parameter of this layer; .*pruning"):
            module.merge()
        assert not module.merged and torch.equal(module(x), before)
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
    own(module, how)
    module.merge()
    assert module.merged
    torch.testing.assert_close(module(x), before, rtol=1e-4, atol=1e-4)


@EVERY
def test_unmerging_a_layer_that_was_parametrized_since_is_refused(name):
    module = LAYERS[name]()
    weight = module.weight
    module.merge()
    nn.utils.parametrizations.weight_norm(module)
    with pytest.raises(RuntimeError, match="unmerge: weight is not a parameter of this layer"):
        module.unmerge()
    own(module, "weight_norm")
    module.unmerge()
    assert module.weight is weight


@EVERY
def test_a_merge_that_fails_does_not_change_the_layer(name, monkeypatch):
    module, x = LAYERS[name](), torch.randn(5, K)
    before = module(x)

    def fails():
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(module, "_merged_values", fails)
        module.merge()
    assert not module.merged and torch.equal(module(x), before)


@EVERY
def test_merging_twice_merges_once(name):
    module, x = LAYERS[name](), torch.randn(5, K)
    before = module(x)
    module.merge()
    weight = module.weight
    module.merge()
    assert module.weight is weight
    torch.testing.assert_close(module(x), before, rtol=1e-4, atol=1e-4)
    module.unmerge()
    assert torch.equal(module(x), before)
