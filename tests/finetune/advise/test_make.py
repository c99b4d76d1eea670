"""The parts of an advice fit together: shares and costs are of the same layers, and hybrids are recognised."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconH1Config, GPT2Config, LlamaConfig, MambaConfig, Qwen3NextConfig

from pypeft_fast.finetune.advise.make import is_hybrid, make_advice, plan_rows
from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.plan.candidates import GROUPS, target_groups

SIZES = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, vocab_size=99)


def test_each_candidate_s_share_has_the_parameters_of_its_row(advice):
    rows = plan_rows(advice.plan)
    assert list(rows) == list(advice.shares) == list(GROUPS)
    for name, row in rows.items():
        assert advice.shares[name].parameters == row.parameters
    share = {name: its.energy for name, its in advice.shares.items()}
    assert share["all-linear"] == 1 and share["attention"] + share["mlp"] == pytest.approx(1)
    assert 0 < share["q,v"] < share["attention"]
    assert advice.read == 12 and len(advice.layers) == 14 and not advice.hybrid


def test_the_trial_is_of_the_choice_and_the_most_energetic_other(advice):
    others = {name: its.energy for name, its in advice.shares.items() if name != "all-linear"}
    assert [its.targets for its in advice.trial.tried] == ["all-linear", max(others, key=others.get)]
    assert advice.trial.steps == 2 and advice.trial.examples == len(advice.data.held_out) == 6


def test_costs_are_those_of_the_longest_example(advice):
    longest = max(len(its.input_ids) for its in advice.data.train + advice.data.held_out)
    assert advice.plan.wanted.max_length == longest < 64


def test_the_advice_repeats_with_the_seed(advice, wanted, dialogues):
    again = make_advice(replace(wanted, steps=None), load_data(str(dialogues)), None, lambda text: None)
    assert again.layers == advice.layers and again.trial is None
    other = replace(wanted, steps=None, settings=replace(wanted.settings, seed=1))
    assert make_advice(other, load_data(str(dialogues)), None, lambda text: None).layers != advice.layers


def test_a_candidate_that_needs_checkpointing_is_measured_with_it(advice, wanted, dialogues):
    peaks = [its.peak for its in plan_rows(advice.plan)["all-linear"].memory]
    tight = replace(wanted, steps=None, on_gpu=True, room=10**12)
    on_gpu = make_advice(tight, load_data(str(dialogues)), None, lambda text: None)
    peaks = [its.peak for its in plan_rows(on_gpu.plan)["all-linear"].memory]
    assert peaks[1] < peaks[0]
    tight = replace(tight, room=sum(peaks) // 2)
    found = make_advice(tight, load_data(str(dialogues)), None, lambda text: None)
    assert found.choice.checkpointing and plan_rows(found.plan)["all-linear"].fits == "checkpointed"
    for its, plain in zip(found.layers, advice.layers, strict=True):
        assert its.energy == pytest.approx(plain.energy, rel=1e-3, abs=1e-12)


def test_nothing_held_out_for_a_trial_is_an_error(wanted, dialogues):
    alone = replace(wanted, settings=replace(wanted.settings, eval_fraction=0))
    with pytest.raises(UserError, match="`try` needs held-out examples"):
        make_advice(alone, load_data(str(dialogues)), None, lambda text: None)


@pytest.mark.parametrize(
    ("config", "hybrid"),
    [
        (LlamaConfig(**SIZES, num_key_value_heads=2), False),
        (GPT2Config(n_embd=32, n_layer=4, n_head=4, vocab_size=99), False),
        (MambaConfig(hidden_size=32, num_hidden_layers=4, vocab_size=99), False),
        (Qwen3NextConfig(**SIZES, num_key_value_heads=2, num_experts=4, moe_intermediate_size=16), True),
        (FalconH1Config(**SIZES, num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8), True),
    ],
    ids=lambda its: getattr(its, "model_type", its),
)
def test_hybrids_have_recurrent_layers_and_attention(config, hybrid):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert is_hybrid(model, 4) is hybrid


def test_a_model_without_linear_layers_has_no_candidates():
    model = torch.nn.Module()
    model.config = LlamaConfig(**SIZES)
    model.layers = torch.nn.ModuleList(torch.nn.Embedding(3, 4) for _ in range(4))
    assert target_groups(model, 4) == {}
    model.layers[0].mlp = torch.nn.Linear(4, 4)
    assert list(target_groups(model, 4)) == ["mlp", "all-linear"]
