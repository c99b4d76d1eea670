"""The next tokens of rows: greedy rows, draws that follow the distribution and the seed, and broken logits."""

import pytest
import torch

from pypeft_fast.serve import sampling
from pypeft_fast.serve.sampling import Sampling, next_tokens

GREEDY = Sampling()


def frequencies(logits, top_p=1.0, temperature=1.0, draws=4000):
    chosen = Sampling.seeded(temperature, top_p, seed=0)
    drawn = torch.tensor([next_tokens(logits[None], [chosen])[0] for _ in range(draws)])
    return torch.bincount(drawn, minlength=len(logits)) / draws


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax_of_the_logits_over_the_temperature(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    expected = (logits / temperature).softmax(-1)
    assert (frequencies(logits, temperature=temperature) - expected).abs().max() < 0.03


@pytest.mark.parametrize("nucleus", [1024, 2])
def test_top_p_keeps_the_fewest_tokens_with_that_probability(monkeypatch, nucleus):
    monkeypatch.setattr(sampling, "NUCLEUS", nucleus)
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    found = frequencies(logits, top_p=0.75)
    assert found[0] == 0 and (found - torch.tensor([0, 4, 2, 3]) / 9).abs().max() < 0.03
    assert frequencies(logits, top_p=0.65).nonzero().flatten().tolist() == [1, 3]
    assert frequencies(logits, top_p=1e-9).tolist() == [0, 1, 0, 0]


def test_rows_draw_as_each_alone():
    logits = torch.randn(3, 50)

    def seeded():
        return [Sampling.seeded(1.0, 0.9, 1), GREEDY, Sampling.seeded(1.5, 1.0, 2)]

    alone = [next_tokens(logits[i : i + 1], [its])[0] for i, its in enumerate(seeded())]
    assert next_tokens(logits, seeded()) == alone and alone[1] == int(logits[1].argmax())


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63), None])
def test_every_seed_of_the_interface_is_accepted(seed):
    assert 0 <= next_tokens(torch.randn(1, 9), [Sampling.seeded(1.0, 1.0, seed)])[0] < 9


def test_without_a_seed_answers_differ():
    rows = [next_tokens(torch.zeros(1, 2**20), [Sampling.seeded(1.0, 1.0, None)])[0] for _ in range(4)]
    assert len(set(rows)) == 4


def test_logits_that_are_not_finite_give_no_token_in_their_row_alone():
    logits = torch.zeros(4, 5)
    logits[0, 3], logits[1, 1], logits[3] = float("nan"), float("inf"), float("-inf")
    drawn = [Sampling.seeded(1.0, 0.5, 0), GREEDY, GREEDY, GREEDY]
    assert next_tokens(logits, drawn) == [None, None, 0, None]
    partly = torch.tensor([[float("-inf"), 0.0]])
    assert next_tokens(partly, [Sampling.seeded(1e-300, 1.0, 0)]) == [1]
