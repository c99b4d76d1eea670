"""IA3Linear as a drop-in: PEFT's values and gradients, sharing, merging, casting, copying, saving, training."""

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pypeft_fast as pf
from tests.nn.copies import COPIES, assert_saved_as_unmerged

BOTH = pytest.mark.parametrize("feedforward", [False, True], ids=["outputs", "feedforward"])


def layer(feedforward=False, dtype=None, bias=True):
    return pf.nn.IA3Linear(24, 17, bias, feedforward=feedforward, init_ia3_weights=False, dtype=dtype)


def expected(module, x):
    if module.feedforward:
        return F.linear((x * module.ia3_l).to(x.dtype), module.weight, module.bias)
    return (F.linear(x, module.weight, module.bias) * module.ia3_l).to(x.dtype)


def peft_layer(module):
    """The layer of PEFT over a copy of the frozen layer, with the same l."""
    linear = nn.Linear(24, 17, module.bias is not None, dtype=module.weight.dtype)
    linear.load_state_dict({k: v for k, v in module.state_dict().items() if k != "ia3_l"})
    feedforward_modules = ["0"] if module.feedforward else []
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=feedforward_modules)
    theirs = peft.get_peft_model(nn.Sequential(linear), config).base_model.model[0]
    parameter = theirs.ia3_l["default"]
    with torch.no_grad():
        parameter.copy_(module.ia3_l.view(parameter.shape))
    return theirs, parameter


@BOTH
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_gradients_and_merging_are_those_of_peft(dtype, bias, feedforward):
    module, x = layer(feedforward, dtype, bias), torch.randn(2, 9, 24, dtype=dtype)
    theirs, parameter = peft_layer(module)
    assert parameter.dtype == module.ia3_l.dtype == torch.float32
    dY, eps = torch.randn(2, 9, 17, dtype=dtype), torch.finfo(dtype).eps
    results = []
    for run, ia3_l in ((module, module.ia3_l), (theirs, parameter)):
        inputs = x.clone().requires_grad_()
        y = run(inputs)
        dX, dl = torch.autograd.grad(y, (inputs, ia3_l), dY)
        results.append((y, dX, dl.view(-1)))
    for ours, their in zip(*results, strict=True):
        assert ours.dtype == their.dtype and their.abs().max() > 0
        torch.testing.assert_close(ours, their, rtol=4 * eps, atol=16 * eps * their.abs().max().item())
    module.merge()
    theirs.merge()
    assert torch.equal(module.weight, theirs.base_layer.weight)
    assert not bias or torch.equal(module.bias, theirs.base_layer.bias)


@BOTH
def test_a_new_layer_computes_what_the_frozen_one_does(feedforward):
    linear, x = nn.Linear(24, 17).eval(), torch.randn(3, 24)
    module = pf.nn.IA3Linear.from_linear(linear, feedforward=feedforward)
    assert isinstance(module, nn.Linear) and module.weight is linear.weight and module.bias is linear.bias
    torch.testing.assert_close(module(x), linear(x))
    assert not module.training
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["ia3_l"]
    assert module.ia3_l.shape == (24 if feedforward else 17,) and (module.ia3_l == 1).all()
    assert layer(feedforward).ia3_l.std() > 0.3


@BOTH
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_is_undone_exactly_and_does_not_change_shared_weights(dtype, bias, feedforward):
    linear = nn.Linear(24, 17, bias, dtype=dtype)
    module = pf.nn.IA3Linear.from_linear(linear, feedforward=feedforward, init_ia3_weights=False)
    with torch.no_grad():
        module.ia3_l[0] = 0  # division could not undo this factor
    before, x = copy.deepcopy(linear.state_dict()), torch.randn(5, 24, dtype=dtype)
    apart = module(x)
    module.merge()
    module.merge()
    assert module.merged and all(torch.equal(v, before[k]) for k, v in linear.state_dict().items())
    assert not torch.equal(module.weight, linear.weight)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(module(x), apart, rtol=8 * eps, atol=8 * eps * apart.abs().max().item())
    module.unmerge()
    module.unmerge()
    assert module.weight is linear.weight and module.bias is linear.bias and torch.equal(module(x), apart)


def test_a_merged_layer_saves_and_loads_as_an_unmerged_one():
    assert_saved_as_unmerged(layer(), layer(), {"weight", "bias", "ia3_l"})


@BOTH
def test_casting_a_merged_layer_casts_what_unmerge_restores(feedforward):
    module = layer(feedforward)
    weight, bias = module.weight.clone(), module.bias.clone()
    module.merge()
    module.half()
    assert module.merged and {p.dtype for p in module.parameters()} == {torch.float16}
    module.unmerge()
    assert torch.equal(module.weight, weight.half()) and torch.equal(module.bias, bias.half())
    x = torch.randn(3, 24, dtype=torch.float16)
    assert module(x).dtype == torch.float16
    assert module.to(torch.float64)(x.double()).dtype == torch.float64


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", list(COPIES))
def test_copies_are_complete_and_independent(how, merged):
    module, x = layer(feedforward=True).eval(), torch.randn(3, 24)
    if merged:
        module.merge()
    twin = COPIES[how](module)
    assert type(twin) is pf.nn.IA3Linear and twin.merged == merged and twin.feedforward
    y = module(x)
    assert torch.equal(twin(x), y)
    twin.unmerge()
    nn.init.zeros_(twin.ia3_l)
    assert torch.equal(module(x), y) and not torch.allclose(twin(x), y)


@BOTH
def test_training_reduces_the_loss_and_leaves_the_base_frozen(feedforward):
    module, teacher, x = layer(feedforward), layer(feedforward), torch.randn(64, 24)
    teacher.load_state_dict({**module.state_dict(), "ia3_l": teacher.ia3_l})
    weight, optimizer = module.weight.clone(), torch.optim.Adam([module.ia3_l], lr=0.1)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(module(x), teacher(x).detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0] and torch.equal(module.weight, weight) and module.weight.grad is None


def test_repr_tells_what_l_multiplies():
    assert "in_features=24, out_features=17, bias=True, feedforward=True" in repr(layer(feedforward=True))
