"""LoRALinear as a drop-in: sharing, merging, casting, copying, saving, training."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pypeft_fast as pf
from tests.device import DEVICE
from tests.nn.copies import COPIES, assert_saved_as_unmerged


def layer(dtype=None, bias=True, **options):
    module = pf.nn.LoRALinear(24, 17, bias, dtype=dtype, **dict(r=4, lora_alpha=8) | options)
    nn.init.normal_(module.lora_B)
    return module


def expected(module, x):
    low = x.to(module.lora_A.dtype) @ module.lora_A.t() @ module.lora_B.t() * module.scaling
    return F.linear(x, module.weight, module.bias) + low.to(x.dtype)


def test_a_new_layer_computes_what_the_frozen_one_does():
    linear, x = nn.Linear(24, 17), torch.randn(3, 24)
    module = pf.nn.LoRALinear.from_linear(linear, r=4)
    assert isinstance(module, nn.Linear) and module.weight is linear.weight and module.bias is linear.bias
    torch.testing.assert_close(module(x), linear(x))
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["lora_A", "lora_B"]
    bound = 1 / math.sqrt(24)
    assert module.lora_A.abs().max() <= bound and module.lora_A.std() > bound / 3 and not module.lora_B.any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("use_rslora", [True, False])
def test_forward_and_scaling(bias, use_rslora):
    module, x = layer(bias=bias, use_rslora=use_rslora), torch.randn(2, 3, 24)
    assert module.scaling == (8 / 2 if use_rslora else 8 / 4)
    torch.testing.assert_close(module(x), expected(module, x))


def test_dropout_in_training_only():
    module, x = layer(lora_dropout=0.5), torch.randn(30, 24)
    assert not torch.equal(module(x), module(x))
    with torch.no_grad():
        outputs = torch.stack([module(x) for _ in range(2000)])
    standard_error = outputs.std(0) / 2000**0.5
    assert ((outputs.mean(0) - expected(module, x)).abs() < 5 * standard_error).all()
    module.eval()
    torch.testing.assert_close(module(x), expected(module, x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merge_is_undone_exactly_and_does_not_change_shared_weights(dtype):
    linear = nn.Linear(24, 17, dtype=dtype)
    module = pf.nn.LoRALinear.from_linear(linear, r=4)
    nn.init.normal_(module.lora_B)
    weight, x = linear.weight.clone(), torch.randn(5, 24, dtype=dtype)
    apart = module(x)
    module.merge()
    module.merge()
    assert module.merged and torch.equal(linear.weight, weight)
    delta = module.scaling * module.lora_B.float() @ module.lora_A.float()
    assert torch.equal(module.weight, (weight.float() + delta).to(dtype))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(module(x), apart, rtol=8 * eps, atol=8 * eps * apart.abs().max().item())
    module.unmerge()
    module.unmerge()
    assert module.weight is linear.weight and torch.equal(module.weight, weight) and torch.equal(module(x), apart)


def test_a_merged_layer_saves_and_loads_as_an_unmerged_one():
    assert_saved_as_unmerged(layer(), layer(), {"weight", "bias", "lora_A", "lora_B"})


def test_casting_a_merged_layer_casts_what_unmerge_restores():
    module = layer()
    original = module.weight.clone()
    module.merge()
    module.half()
    assert module.merged and module.weight.dtype == torch.float16 and module.lora_A.dtype == torch.float16
    module.unmerge()
    assert torch.equal(module.weight, original.half())
    x = torch.randn(3, 24, dtype=torch.float16)
    assert module(x).dtype == torch.float16
    assert module.to(torch.float64)(x.double()).dtype == torch.float64


def test_half_precision_layers_have_float32_adapters():
    module = layer(torch.bfloat16)
    assert module.weight.dtype == torch.bfloat16 and module.lora_A.dtype == module.lora_B.dtype == torch.float32
    module(torch.randn(3, 24, dtype=torch.bfloat16)).float().sum().backward()
    assert module.lora_A.grad.dtype == torch.float32 and module.weight.grad is None


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("how", list(COPIES))
def test_copies_are_complete_and_independent(how, merged):
    module, x = layer(lora_dropout=0.25).eval(), torch.randn(3, 24)
    if merged:
        module.merge()
    twin = COPIES[how](module)
    assert type(twin) is pf.nn.LoRALinear and twin.merged == merged and twin.lora_dropout == 0.25
    y = module(x)
    assert torch.equal(twin(x), y)
    twin.unmerge()
    nn.init.zeros_(twin.lora_B)
    assert torch.equal(module(x), y) and not torch.allclose(twin(x), y)


def test_training_reduces_the_loss_and_leaves_the_base_frozen():
    module, x = layer(lora_dropout=0.1), torch.randn(64, 24)
    target, weight = torch.randn(64, 17), module.weight.clone()
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(60):
        loss = F.mse_loss(module(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0] and torch.equal(module.weight, weight)


@pytest.mark.parametrize("dtype,autocast", [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)])
def test_autocast_to_the_other_half_precision(dtype, autocast):
    module, x = layer(bias=True).to(dtype), torch.randn(5, 24)
    assert module.lora_A.dtype == dtype
    with torch.autocast(DEVICE, autocast):
        y = module(x)
        assert y.dtype == F.linear(x, module.weight, module.bias).dtype == autocast
    y.float().sum().backward()
    assert module.lora_A.grad.dtype == module.lora_B.grad.dtype == dtype
    expected = F.linear(x, module.weight.float(), module.bias.float())
    expected += module.scaling * x @ module.lora_A.float().t() @ module.lora_B.float().t()
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_on_the_meta_device(dropout):
    module = layer(lora_dropout=dropout).to("meta").train()
    x = torch.empty(2, 5, 24, device="meta", requires_grad=True)
    y = module(x)
    assert y.is_meta and y.shape == (2, 5, 17)
    y.sum().backward()
    assert x.grad.shape == x.shape and module.lora_A.grad.shape == (4, 24)


def test_repr_tells_rank_and_scaling():
    assert "in_features=24, out_features=17, bias=True, r=4, scaling=2, lora_dropout=0.0" in repr(layer())


@pytest.mark.parametrize(
    "options,error,words",
    [
        (dict(r=0), ValueError, "r=0 must be an integer of at least 1"),
        (dict(r=2.5), ValueError, "r=2.5 must be"),
        (dict(lora_alpha=float("nan")), ValueError, "lora_alpha=nan must be above 0 and finite"),
        (dict(lora_alpha=0), ValueError, "lora_alpha=0 must be above 0"),
        (dict(lora_alpha="x"), TypeError, "lora_alpha='x' must be a number"),
        (dict(lora_alpha=None), TypeError, "lora_alpha=None must be a number"),
        (dict(lora_dropout=1.0), ValueError, r"lora_dropout: dropout p=1.0 must be in \[0, 1\)"),
        (dict(lora_dropout="a"), TypeError, "lora_dropout='a' must be a number"),
    ],
)
def test_bad_options(options, error, words):
    with pytest.raises(error, match=words):
        pf.nn.LoRALinear(4, 4, **options)


def dora(dtype=None, **options):
    """A DoRA layer whose magnitude differs from the lengths of the rows, as after training."""
    module = layer(dtype, use_dora=True, **options)
    with torch.no_grad():
        module.lora_magnitude_vector *= 0.5 + torch.rand(17)
    return module


def test_a_new_dora_layer_computes_what_the_frozen_one_does():
    linear, x = nn.Linear(24, 17), torch.randn(3, 24)
    module = pf.nn.LoRALinear.from_linear(linear, r=4, use_dora=True)
    assert [n for n, p in module.named_parameters() if p.requires_grad] == ["lora_A", "lora_B", "lora_magnitude_vector"]
    torch.testing.assert_close(module.lora_magnitude_vector.detach(), linear.weight.norm(dim=1))
    torch.testing.assert_close(module(x), linear(x))
    assert "use_dora=True" in repr(module) and "use_dora" not in repr(layer())


@pytest.mark.parametrize("assign", [False, True])
def test_a_new_dora_layer_that_loads_a_weight_alone_computes_what_the_weight_does(assign):
    linear, x = nn.Linear(24, 17), torch.randn(3, 24)
    module = pf.nn.LoRALinear(24, 17, r=4, use_dora=True)
    found = module.load_state_dict(linear.state_dict(), strict=False, assign=assign)
    assert "lora_magnitude_vector" in found.missing_keys
    torch.testing.assert_close(module(x), linear(x))


def test_a_trained_dora_layer_that_loads_a_weight_alone_keeps_its_lengths():
    module = dora()
    lengths = module.lora_magnitude_vector.detach().clone()
    module.load_state_dict(nn.Linear(24, 17).state_dict(), strict=False)
    assert torch.equal(module.lora_magnitude_vector, lengths)
    with_lengths = {"weight": torch.ones(17, 24), "lora_magnitude_vector": torch.ones(17)}
    module = pf.nn.LoRALinear(24, 17, r=4, use_dora=True)
    module.load_state_dict(with_lengths, strict=False)
    assert torch.equal(module.lora_magnitude_vector, torch.ones(17))
    module.load_state_dict({"weight": torch.ones(17, 24)}, strict=False)  # lora_B is zero, the lengths are its own
    assert torch.equal(module.lora_magnitude_vector, torch.ones(17))


def test_a_weight_that_does_not_fit_leaves_the_lengths_of_a_dora_layer():
    module = pf.nn.LoRALinear(24, 17, r=4, use_dora=True)
    before = module.lora_magnitude_vector.detach().clone()
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict({"weight": torch.ones(3, 3)}, strict=False)
    assert torch.equal(module.lora_magnitude_vector, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dora_merges_and_unmerges(dtype):
    module, x = dora(dtype).eval(), torch.randn(5, 24, dtype=dtype)
    weight, apart = module.weight, module(x)
    values = weight.clone()
    sum_ = weight.float() + module.scaling * module.lora_B @ module.lora_A
    factor = module.lora_magnitude_vector / sum_.norm(dim=1)
    expected = F.linear(x.float(), factor[:, None] * sum_, module.bias.float())
    eps = torch.finfo(dtype).eps
    close = dict(rtol=8 * eps, atol=8 * eps * expected.abs().max().item())
    torch.testing.assert_close(apart.float(), expected, **close)
    module.merge()
    assert module.merged and not torch.equal(module.weight, weight)
    torch.testing.assert_close(module(x).float(), expected, **close)
    module.unmerge()
    assert module.weight is weight and torch.equal(weight, values) and torch.equal(module(x), apart)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "state_dict", "double"])
def test_copies_of_a_dora_layer_are_complete(how):
    module, x = dora().eval(), torch.randn(3, 24)
    y = module(x).detach()
    if how == "state_dict":
        twin = dora().eval()
        twin(x)
        twin.load_state_dict(module.state_dict())
    elif how == "double":
        twin = module.double()
        torch.testing.assert_close(twin(x.double()), y.double(), rtol=1e-5, atol=1e-5)
        return
    else:
        twin = COPIES[how](module)
    assert torch.equal(twin(x), y)
    with torch.no_grad():
        twin.lora_B.zero_()
    assert torch.equal(module(x), y) and not torch.allclose(twin(x), y)


def test_dora_trains_through_writes_to_data():
    """Optimizers with flat copies of the parameters write through .data, which changes no version counter."""
    module, x = dora(lora_dropout=0.1), torch.randn(64, 24)
    for _ in range(3):
        module(x).square().mean().backward()
        for p in (module.lora_A, module.lora_B, module.lora_magnitude_vector):
            p.data.sub_(p.grad, alpha=0.5)
            p.grad = None
    fresh = copy.deepcopy(module).eval()
    assert torch.equal(module.eval()(x), fresh(x))
    module.train()
    module.lora_dropout = fresh.lora_dropout = 0.0
    torch.testing.assert_close(module(x), fresh(x))


def _fused_step(module, parameters):
    torch.optim.AdamW(parameters, lr=0.3, fused=True).step()


def _data(module, parameters):
    for p in parameters:
        p.data.sub_(p.grad, alpha=0.5)


def _freed_and_filled_again(module, parameters):
    """As FSDP2 frees and fills gathered parameters."""
    for p in (module.weight, *parameters):
        values, storage = p.detach() * 1.5, p.untyped_storage()
        size = storage.size()
        storage.resize_(0)
        storage.resize_(size)
        with torch.autograd._unsafe_preserve_version_counter(p), torch.no_grad():
            p.copy_(values)


def _swapped(module, parameters):
    """As an average of the weights replaces the weights for an evaluation."""
    for p in (module.weight, *parameters):
        average = p.detach() * 0.5
        p.data, average.data = average.data, p.data


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("change", [_fused_step, _data, _freed_and_filled_again, _swapped])
def test_dora_uses_weights_that_change_without_a_version_counter(change, grad, train):
    module, x = dora().train(train), torch.randn(5, 24)
    parameters = [p for p in module.parameters() if p.requires_grad]
    module(x).square().sum().backward()
    with torch.set_grad_enabled(grad):
        before = module(x)
        module(x)
        versions = [p._version for p in module.parameters()]
        change(module, parameters)
        assert versions == [p._version for p in module.parameters()]
        after = module(x)
        assert torch.equal(after, copy.deepcopy(module)(x)) and not torch.allclose(after, before)
