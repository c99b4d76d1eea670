"""A trial: the same batches for each candidate, held-out losses of the trained adapters, and their difference."""

from dataclasses import replace

import pytest
import torch

from pypeft_fast.finetune.advise.spread import ratio
from pypeft_fast.finetune.advise.trial import Trial, Tried, run_trial
from pypeft_fast.finetune.base_models import load_base
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.data.tokens import Collator
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.held_out import held_out_loss, losses_by_example, target_tokens
from pypeft_fast.finetune.plan.candidates import Candidate
from pypeft_fast.finetune.training.prepare import prepare
from pypeft_fast.finetune.training.ready import make_ready
from pypeft_fast.finetune.training.train import fine_tune

ATTENTION = Candidate("lora", "attention", ("k_proj", "o_proj", "q_proj", "v_proj"), 4)
WHOLE = Candidate("lora", "all-linear", "all-linear", 4)


class Recording(Collator):
    def __init__(self, pad_id):
        super().__init__(pad_id)
        object.__setattr__(self, "training", [])

    def __call__(self, batch):
        found = super().__call__(batch)
        if torch.is_grad_enabled():  # not for the held-out loss
            self.training.append(found["input_ids"])
        return found


@pytest.fixture(scope="module")
def settings(wanted):
    return replace(wanted.settings, max_steps=3, save_every=0, learning_rate=1e-2)


@pytest.fixture(scope="module")
def data(settings, tokenizer, dialogues):
    return prepare(tokenizer, load_data(str(dialogues)), settings)


@pytest.fixture(scope="module")
def tried(settings, data, tokenizer):
    """(the trial, the collator that recorded its batches, the base model before and after)."""
    base, collator = load_base(settings.model)[0], Recording(Collator.of(tokenizer).pad_id)
    before = {name: its.clone() for name, its in base.state_dict().items()}
    trial, after = run_trial(base, [(ATTENTION, False), (WHOLE, True)], data, collator, settings, lambda text: None)
    return trial, collator, before, after


def test_both_candidates_read_the_same_batches(tried):
    batches = tried[1].training
    each = len(batches) // 2  # 3 steps, and the batches that the loader has read ahead
    assert each >= 3
    assert all(torch.equal(a, b) for a, b in zip(batches[:each], batches[each:], strict=True))
    assert not torch.equal(batches[0], batches[1])


def test_the_base_model_is_left_as_it_was(tried):
    _, _, before, after = tried
    state = after.state_dict()
    assert state.keys() == before.keys() and all(torch.equal(state[name], its) for name, its in before.items())
    assert not after.is_gradient_checkpointing


def test_the_losses_are_those_of_a_run_of_its_own(tried, settings, data, dialogues, tmp_path):
    trial = tried[0]
    assert [its.targets for its in trial.tried] == ["attention", "all-linear"]
    assert (trial.steps, trial.examples, trial.tokens) == (3, len(data.held_out), target_tokens(data.held_out))
    for its, candidate in zip(trial.tried, (ATTENTION, WHOLE), strict=True):
        modules = candidate.settings("").target_modules
        alone = replace(settings, target_modules=modules)
        ready = make_ready(alone, load_data(str(dialogues)))
        metrics = fine_tune(ready.model, ready.data, ready.collator, alone, tmp_path / candidate.targets, None)
        assert its.training == pytest.approx(metrics["losses"], rel=1e-4)
        assert its.loss[0] == pytest.approx(metrics["eval_loss_after"], rel=1e-4)
        assert trial.base.loss[0] == pytest.approx(metrics["eval_loss_before"], rel=1e-4)
        assert its.loss[0] < trial.base.loss[0] and its.seconds > 0


def test_losses_by_example_sum_to_the_held_out_loss(settings, data, tokenizer):
    base, collator = load_base(settings.model)[0], Collator.of(tokenizer)
    found = losses_by_example(base, data.held_out, collator, 4)
    assert sum(tokens for _, tokens in found) == target_tokens(data.held_out)
    loss = sum(loss for loss, _ in found) / target_tokens(data.held_out)
    assert loss == pytest.approx(held_out_loss(base, data.held_out, collator, 4), rel=1e-5)
    alone = losses_by_example(base, data.held_out[1:2], collator, 4)
    assert alone[0] == pytest.approx(found[1], rel=1e-4)


def test_the_lead_is_over_the_same_examples():
    first = Tried("q,v", (1.0,), (2.0, 8.0, 3.0), (1, 2, 1), 1.0)
    second = Tried("mlp", (1.0,), (2.5, 9.0, 3.5), (1, 2, 1), 1.0)
    trial = Trial(1, 1e-3, replace(first, targets="base model"), (second, first))
    assert [its.targets for its in trial.ranked()] == ["q,v", "mlp"]
    assert trial.lead() == ratio([0.5, 1.0, 0.5], [1, 2, 1]) == (0.5, 0.0)  # though the losses vary much


def test_a_diverged_trial_is_an_error(settings, data, tokenizer):
    base = load_base(settings.model)[0]
    with torch.no_grad():
        base.model.embed_tokens.weight[:] = torch.nan
    with pytest.raises(UserError, match="is nan"):
        run_trial(base, [(WHOLE, False)], data, Collator.of(tokenizer), settings, lambda text: None)
