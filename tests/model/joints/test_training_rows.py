"""Training with an adapter for each row: every adapter gets the gradients of its solo run with the same rows."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import pypeft_fast as pf
from tests.model import zoo

RANKS = {"a": 2, "b": 5, "c": 3}
IDS = torch.randint(0, 97, (6, 7), generator=torch.Generator().manual_seed(3))
NAMES = ["b", "a", "__base__", "b", "c", "a"]


def model_of(kind="llama", p=0.0, **options):
    """Adapters of other ranks, scalings and rates; c in some of the layers; all of them train."""
    model = zoo.build(kind)
    for name, r in RANKS.items():
        targets = zoo.TARGETS[kind][: 1 if name == "c" else None]
        rate = p if name != "a" else p / 2
        config = pf.LoraConfig(r=r, lora_alpha=r * r, target_modules=targets, lora_dropout=rate, **options)
        if isinstance(model, pf.PeftModel):
            model.add_adapter(name, config)
        else:
            model = pf.get_peft_model(model, config, name)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            generator = torch.Generator().manual_seed(zoo.hash_of(name))
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    model.set_adapter(list(RANKS))
    for name, module in model.train().named_modules():
        if isinstance(module, nn.Dropout) and "lora_dropout" not in name:
            module.p = 0.0  # the model's own
    return model


def loss_of(model, rows, **options):
    """The sum over the rows of what each says: no row's loss depends on how many there are."""
    return zoo.logits(model, IDS[rows], **options).square().mean((1, 2)).sum()


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if "lora_" in n and p.grad is not None}


@pytest.mark.parametrize("options", [{}, dict(use_rslora=True)], ids=str)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_each_adapter_s_gradients_are_those_of_its_solo_run(kind, options):
    model = model_of(kind, **options)
    loss_of(model, range(6), adapter_names=NAMES).backward()
    mixed = gradients(model)
    zoo.assert_fused(model)
    for name in RANKS:
        alone = model_of(kind, **options)
        alone.set_adapter(name)
        loss_of(alone, [i for i, its in enumerate(NAMES) if its == name]).backward()
        solo = gradients(alone)
        assert len(solo) > 2 and all(f".{name}." in n for n in solo)
        for n, grad in solo.items():
            torch.testing.assert_close(mixed[n], grad, rtol=0, atol=1e-4 * grad.abs().max().item())
    assert sum(f".{name}." in n for name in RANKS for n in mixed) == len(mixed)


def test_an_adapter_s_gradients_do_not_depend_on_the_others():
    found = []
    for names in (NAMES, ["b", "c", "c", "b", "__base__", "c"]):
        model = model_of()
        loss_of(model, range(6), adapter_names=names).backward()
        found.append({n: g for n, g in gradients(model).items() if ".b." in n})
    assert len(found[0]) == len(found[1]) == 8
    for n, grad in found[0].items():
        torch.testing.assert_close(found[1][n], grad, rtol=0, atol=2e-5 * grad.abs().max().item())


def step(model, seed=0, names=NAMES):
    torch.manual_seed(seed)
    loss = loss_of(model, range(6), adapter_names=names)
    loss.backward()
    return {"loss": loss.detach(), **gradients(model)}


def assert_equal(found, wanted, equal=True):
    assert set(found) == set(wanted) and len(wanted) > 10
    for name, value in wanted.items():
        if equal:
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5 * value.abs().max().item())
    if not equal:
        assert not torch.allclose(found["loss"], wanted["loss"])


def test_dropout_follows_the_seed():
    first = step(model_of(p=0.4))
    for name, value in step(model_of(p=0.4)).items():
        assert torch.equal(value, first[name])
    assert_equal(step(model_of(p=0.4), seed=1), first, equal=False)
    assert_equal(step(model_of()), first, equal=False)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("names", [NAMES, ["b"] * 6], ids=["several", "one"])
def test_checkpointed_blocks_run_again_with_their_rows(names, reentrant):
    """Also where one adapter has all rows, and where another is active."""
    wanted, model = step(model_of(p=0.4), names=names), model_of(p=0.4)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=reentrant))
    model.enable_input_require_grads()
    found = step(model, names=names)
    if names == NAMES:
        assert_equal(found, wanted)
    else:
        assert set(found) == set(wanted) and all(torch.allclose(found[n], wanted[n], rtol=1e-4) for n in wanted)
    again = model_of(p=0.4)
    again.set_adapter("a")
    again.set_requires_grad(["b", "c"])
    again.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=reentrant))
    again.enable_input_require_grads()
    found = step(again, names=names)
    assert all(torch.allclose(found[n], wanted[n], rtol=1e-4, atol=1e-6) for n in wanted)


def test_two_forwards_before_one_backward_keep_their_own_rows():
    wanted, model = model_of(), model_of()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    for each in (wanted, model):
        losses = [loss_of(each, range(6), adapter_names=names) for names in (NAMES, NAMES[::-1])]
        (losses[0] + 2 * losses[1]).backward()
    found, expected = gradients(model), gradients(wanted)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-5 * grad.abs().max().item())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_a_mixed_call_between_a_checkpointed_call_and_its_backward_pass_changes_nothing(reentrant, trains):
    """As for the logits of a reference adapter."""
    found = []
    for between in (False, True):
        model = model_of()
        model.set_adapter("a")
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=reentrant))
        model.enable_input_require_grads()
        loss = loss_of(model, range(6))
        if between:
            with torch.no_grad():
                loss_of(model.train(trains), range(6), adapter_names=["b", "c"] * 3)
            model.train()
        loss.backward()
        found.append(gradients(model))
    assert len(found[0]) > 3 and all(torch.equal(found[1][n], grad) for n, grad in found[0].items())


class Checkpoints(nn.Module):
    """A model that checkpoints a block by itself, where nothing can give the names to the block's second run."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return checkpoint(lambda x: self.second(self.first(x).relu()), x, use_reentrant=True)


def test_a_second_run_that_has_lost_its_rows_is_an_error():
    config = functools.partial(pf.LoraConfig, target_modules=["first", "second"], init_lora_weights=False)
    model = pf.get_peft_model(Checkpoints(), config(), "a")
    model.add_adapter("b", config())
    model.set_adapter(["a", "b"])
    x = torch.randn(4, 3, 8, requires_grad=True)
    loss = model.train()(x, adapter_names=["a", "b", "b", "a"]).sum()
    with torch.no_grad():
        model.eval()(x)  # between the two passes
    with pytest.raises(RuntimeError, match="runs this layer again without the adapter_names of its call"):
        model.train()
        loss.backward()
    model.set_adapter("a")
    model(x).sum().backward()  # a call without names is as it was


def test_a_mixed_call_without_gradients_loses_no_rows():
    """Whether or not such a call is checkpointed: transformers 5.24 does not, 5.23 does."""
    config = functools.partial(pf.LoraConfig, target_modules=["first", "second"], init_lora_weights=False)
    model, found = pf.get_peft_model(Checkpoints(), config(), "a").train(), []
    model.add_adapter("b", config())
    x = torch.randn(4, 3, 8, requires_grad=True)
    for between in (False, True):
        model.zero_grad()
        loss = model(x).square().sum()
        if between:
            with torch.no_grad():
                model(x, adapter_names=["a", "b", "b", "a"])
        loss.backward()
        found.append(gradients(model))
    assert len(found[0]) == 4 and all(torch.equal(found[1][n], grad) for n, grad in found[0].items())


def test_adapters_that_switching_has_frozen_are_named():
    model = model_of()
    model.set_adapter("a")
    with pytest.warns(UserWarning, match=r"adapter_names: b, c get no gradients.*set_adapter\(\['a', 'b', 'c'\]\)"):
        loss_of(model, range(6), adapter_names=NAMES)


def test_mistakes_in_training():
    model = model_of()
    for names, error, words in (
        ("a", TypeError, "must be a list of names, one a row"),
        (["nobody"] * 6, ValueError, "non-existing adapter.*nobody"),
        (["a"] * 5, ValueError, "but got 5 and 6 respectively, the rows of .*q_proj"),
    ):
        with pytest.raises(error, match=words):
            loss_of(model, range(6), adapter_names=names)
    model.delete_adapter("c")
    with pytest.raises(ValueError, match="non-existing adapter.*: c; add or load"):
        loss_of(model, range(6), adapter_names=NAMES)
