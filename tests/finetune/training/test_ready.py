"""The preparation of a run: an adapter whose initial values depend on the seed, and the examples as tokens."""

import pytest
import torch

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.ready import make_ready
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.training.train import fine_tune


def trained(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_equal_seeds_give_equal_adapters(tiny_model, dialogues):
    examples, options = load_data(str(dialogues)), {"rank": 2, "target_modules": ["q_proj"]}
    runs = [make_ready(Settings(str(tiny_model), str(dialogues), seed=seed, **options), examples) for seed in (1, 1, 2)]
    first, again, other = (trained(run.model) for run in runs)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert (len(runs[0].data.train), len(runs[0].data.held_out)) == (18, 2)
    assert runs[0].collator(runs[0].data.held_out)["input_ids"].shape[0] == 2


def test_examples_of_their_own_to_hold_out(tiny_model, dialogues):
    examples = load_data(str(dialogues))
    ready = make_ready(Settings(str(tiny_model), str(dialogues)), examples[4:], examples[:4])
    assert (len(ready.data.train), len(ready.data.held_out)) == (16, 4)


def test_an_unknown_target_is_an_error(tiny_model, dialogues):
    with pytest.raises(UserError, match="no layer of this model is called 'q_prog'; did you mean q_proj"):
        make_ready(Settings(str(tiny_model), "d", target_modules=["q_prog"]), load_data(str(dialogues)))


def test_a_rank_beyond_every_layer_is_refused(tiny_model, dialogues):
    with pytest.raises(UserError, match="`rank` 1000000 is more than the widest layer of this model has"):
        make_ready(Settings(str(tiny_model), "d", rank=1000000), load_data(str(dialogues)))


def test_one_step_trains(tiny_model, dialogues, tmp_path):
    settings = Settings(str(tiny_model), str(dialogues), max_steps=1, rank=2)
    ready = make_ready(settings, load_data(str(dialogues)))
    before = trained(ready.model).clone()
    fine_tune(ready.model, ready.data, ready.collator, settings, tmp_path, None)
    assert not torch.equal(trained(ready.model), before)
