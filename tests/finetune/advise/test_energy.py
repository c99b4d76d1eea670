"""Gradient energies against the gradients of the frozen weights, which autograd computes without adapters."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from pypeft_fast.finetune.adapters.adapted import adapted
from pypeft_fast.finetune.advise.energy import batches_of, gradient_energies
from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.tokens import Collator
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.prepare import prepare
from pypeft_fast.finetune.training.settings import Settings

RANK, ALPHA = 3, 12


@pytest.fixture
def batches(tiny_model, tokenizer, dialogues):
    data = prepare(tokenizer, load_data(str(dialogues)), Settings(str(tiny_model), "d"))
    return batches_of(data.train, Collator.of(tokenizer), 4, 3, seed=0)


@pytest.fixture
def model(tiny_model):
    return adapted(load_base(str(tiny_model))[0], Settings(str(tiny_model), "d", rank=RANK, alpha=ALPHA, dropout=0.0))


def test_the_energy_is_that_of_the_weights_gradients_times_a(model, tiny_model, batches):
    found = {its.name: its for its in gradient_energies(model.train(), 2, batches)}
    plain = AutoModelForCausalLM.from_pretrained(tiny_model).train()
    layers = {name: its for name, its in plain.named_modules() if isinstance(its, torch.nn.Linear)}
    del layers["lm_head"]
    assert found.keys() == layers.keys() and len(layers) == 2 * 7
    for number, batch in enumerate(batches):
        plain.zero_grad()
        plain(**batch).loss.backward()
        for name, layer in layers.items():
            a = model.get_submodule(f"base_model.model.{name}").lora_A["default"].weight
            expected = (ALPHA / RANK * layer.weight.grad @ a.detach().T).square().sum()
            assert found[name].energies[number] == pytest.approx(float(expected), rel=1e-4)
    its = found["model.layers.1.mlp.down_proj"]
    assert (its.block, its.module, its.parameters) == (1, "mlp.down_proj", RANK * (64 + 32))
    assert its.energy == pytest.approx(sum(its.energies) / 3)


def test_the_model_is_left_without_gradients_and_unchanged(model, batches):
    before = {name: its.clone() for name, its in model.named_parameters()}
    counted = []
    gradient_energies(model.train(), 2, batches, counted.append)
    assert counted == [1, 2, 3]
    assert all(its.grad is None and torch.equal(its, before[name]) for name, its in model.named_parameters())


def test_a_loss_that_is_nan_is_named(model, batches):
    with torch.no_grad():
        model.get_submodule("base_model.model.model.layers.0.mlp.up_proj").base_layer.weight[0, 0] = math.nan
    with pytest.raises(UserError, match="the loss of batch 1 is nan before any training"):
        gradient_energies(model, 2, batches)


def test_no_gradient_at_all_is_an_error(model, batches):
    with torch.no_grad():
        model.get_submodule("base_model.model.lm_head").weight.zero_()
    with pytest.raises(UserError, match="all gradients of the adapters are zero"):
        gradient_energies(model, 2, batches)


def test_batches_are_whole_and_of_different_examples(tiny_model, tokenizer, dialogues):
    data = prepare(tokenizer, load_data(str(dialogues)), Settings(str(tiny_model), "d"))
    seen = []

    def collator(batch):
        seen.append([tuple(its.input_ids) for its in batch])
        return {}

    assert len(batches_of(data.train, collator, 4, 100, seed=1)) == 4  # 18 examples
    assert all(len(batch) == 4 for batch in seen) and len({its for batch in seen for its in batch}) == 16
    first = list(seen)
    batches_of(data.train, collator, 4, 2, seed=1)
    batches_of(data.train, collator, 4, 2, seed=2)
    assert seen[4:6] == first[:2] != seen[6:8]
    with pytest.raises(UserError, match="`data` has 18 examples to train on, fewer than `batch_size` 19"):
        batches_of(data.train, collator, 19, 2, seed=1)
