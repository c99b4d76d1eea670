"""Sentences that explain the numbers of a run."""

from types import SimpleNamespace

import pytest

from pypeft_fast.finetune.report.advice import after_training, before_training
from pypeft_fast.finetune.training.settings import Settings


def test_sentences_after():
    metrics = {"eval_loss_before": 4.39, "eval_loss_after": 5.62, "best_step": None, "steps": 6, "stopped_early": False}
    lines = after_training(metrics)
    assert lines[0] == "loss on held-out data: 4.390 before, 5.620 after"
    assert lines[1].startswith("warning: the held-out loss rose, so this adapter answers new questions worse")
    assert after_training(metrics | {"eval_loss_after": 3.0}) == ["loss on held-out data: 4.390 before, 3.000 after"]
    assert after_training(metrics | {"eval_loss_before": None}) == []


def test_a_learning_rate_that_is_none_for_adapters():
    data = SimpleNamespace(train=[None] * 100, rows=[None] * 100, held_out=[None] * 10)
    for rate in (1e-6, 5e-4, 1e-1):
        assert before_training(Settings("m", "d", learning_rate=rate), data) == []
    for rate in (9e-7, 0.11):
        (line,) = before_training(Settings("m", "d", method="ia3", learning_rate=rate), data)
        assert f"a `learning_rate` of {rate:g} is outside 1e-06 to 0.1" in line and "usual for ia3 is 0.005" in line


def test_a_warm_up_as_long_as_the_run():
    data = SimpleNamespace(train=[None] * 100, rows=[None] * 100, held_out=[None] * 10)  # 75 steps
    assert before_training(Settings("m", "d", warmup=74), data) == []
    (line,) = before_training(Settings("m", "d", warmup=75), data)
    assert line.startswith("warning: the `warmup` takes 75 steps and the run has 75")


@pytest.mark.parametrize("steps", [1, 2])
def test_few_steps(steps):
    data = SimpleNamespace(train=[None] * 9, rows=[None] * 9, held_out=[None] * 10)
    line, *_ = before_training(Settings("m", "d", max_steps=steps, warmup=0), data)
    says = {1: "warning: only 1 step, which teaches little", 2: "warning: only 2 steps, which teach little"}
    assert line.startswith(says[steps])


def test_few_held_out_examples():
    data = SimpleNamespace(train=[None] * 100, rows=[None] * 100, held_out=[None] * 2)
    (line,) = before_training(Settings("m", "d"), data)
    assert line == "warning: 2 held-out examples prove little; for more give `eval_fraction` or `eval_data`"
    (line,) = before_training(Settings("m", "d", eval_data="e"), data)
    assert line == "warning: 2 held-out examples prove little; give more in `eval_data`"
