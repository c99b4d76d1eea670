"""Evaluation: the best checkpoint is kept and loaded, training stops early, and advice explains the numbers."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import besides
from tests.cli.test_bad_input import mistake


@pytest.fixture(scope="module")
def nonsense(tmp_path_factory):
    """24 questions with random answers, so that training on some raises the loss of the others."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("data") / "nonsense.jsonl"
    words = "sky blue light paris france model small why".split()
    lines = [
        {"prompt": f"what is {i}", "completion": " ".join(rng.choices(words, k=4))} for i in rng.sample(range(900), 24)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def finetune(command, tiny_model, nonsense):
    def run(output, *options, steps=40, data=nonsense):
        common = ["--model", tiny_model, "--data", data, "--output", output, "--learning-rate", 0.05, "--rank", 4]
        return command("finetune", *besides([*common, "--max-steps", steps, "--eval-fraction", 0.25], options))

    return run


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_best_checkpoint_is_what_remains(finetune, tmp_path):
    code, out, err = finetune(tmp_path / "a", "--eval-every", 4, "--keep-checkpoints")
    assert code == 0, err
    metrics = metrics_of(tmp_path / "a")
    history = dict(metrics["loss_history"]["held_out"])
    assert list(history) == [0, *range(4, 41, 4)] and len(metrics["loss_history"]["train"]) == 40
    best = min((loss, step) for step, loss in history.items() if step)[1]
    assert best < 40 and metrics["best_step"] == best, history
    assert metrics["eval_loss_after"] == pytest.approx(history[best], abs=1e-5)
    assert history[best] < history[40]
    assert f"the adapter is that of step {best} of 40, the best one" in out and f"{history[40]:.3f}" in out
    assert f"step {best}: loss on held-out data {history[best]:.3f}" in out
    kept, last = (load_file(tmp_path / "a" / n / "adapter_model.safetensors") for n in (f"checkpoint-{best}", "."))
    assert all(torch.equal(kept[name], last[name]) for name in kept)
    assert (tmp_path / "a" / "checkpoint-40").is_dir()


def test_a_run_that_was_cut_off_ends_with_the_same_best(finetune, tmp_path, monkeypatch):
    from pypeft_fast.finetune.training.trainer import TimedTrainer

    assert finetune(tmp_path / "whole", "--eval-every", 4)[0] == 0
    real = TimedTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 39:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TimedTrainer, "training_step", interrupted)
        assert finetune(tmp_path / "before", "--eval-every", 4)[0] == 130
    (tmp_path / "before").rename(tmp_path / "parts")  # the path of its best checkpoint has changed
    assert finetune(tmp_path / "parts", "--eval-every", 4, "--resume")[0] == 0
    whole, parts = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "parts")
    assert whole["best_step"] < 36  # before the last checkpoint of the first part
    for name in ("best_step", "eval_loss_after", "loss_history"):
        assert whole[name] == parts[name]
    assert not list(tmp_path.glob("parts/checkpoint-*"))


def test_patience_ends_the_run(finetune, tmp_path):
    code, out, _ = finetune(tmp_path / "a", "--eval-every", 2, "--patience", 2)
    metrics = metrics_of(tmp_path / "a")
    assert code == 0 and metrics["stopped_early"] and metrics["steps"] == metrics["best_step"] + 4 < 40
    assert f"stopped after step {metrics['steps']}: the held-out loss fell no more" in out
    mistake(finetune(tmp_path / "b", "--patience", 0), "--patience")


def test_data_of_its_own_to_hold_out(finetune, tmp_path, nonsense, dialogues):
    lines = nonsense.read_text().splitlines()
    other = tmp_path / "held-out.jsonl"
    other.write_text("\n".join([*dialogues.read_text().splitlines()[:8], *lines[:2]]))
    code, out, err = finetune(tmp_path / "a", "--eval-data", other, steps=2)
    assert code == 0, err
    assert "24 examples to train on, 10 held out\n" in out
    assert "warning: the questions of 2 of 10 examples of --eval-data are in --data too" in out
    assert metrics_of(tmp_path / "a")["eval_examples"] == 10
    mistake(finetune(tmp_path / "b", "--eval-data", tmp_path / "none"), "--eval-data", "no such file")


def test_warnings_before(finetune, tmp_path, dialogues):
    code, out, _ = finetune(tmp_path / "a", "--eval-fraction", 0.1, steps=6, data=dialogues)
    assert code == 0 and "warning: only 6 steps, which teach little; for more give --epochs or --max-steps" in out
    assert "warning: 2 held-out examples prove little; for more give --eval-fraction or --eval-data" in out
    code, out, _ = finetune(tmp_path / "b", "--eval-fraction", 0, steps=20, data=dialogues)
    assert code == 0 and "warning: nothing is held out" in out and "warning: only" not in out
    assert metrics_of(tmp_path / "b")["loss_history"]["held_out"] == []


def test_evaluate_tells_the_losses_that_training_told(finetune, command, tiny_model, tmp_path, nonsense, dialogues):
    assert finetune(tmp_path / "a", "--eval-data", dialogues, "--eval-every", 4, steps=8)[0] == 0
    metrics = metrics_of(tmp_path / "a")
    common = ["evaluate", "--model", tiny_model, "--data", dialogues, "--adapter", f"mine={tmp_path / 'a'}"]
    code, out, err = command(*common, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert facts["examples"] == 20 and facts["losses"].keys() == {"base", "mine"}
    assert facts["losses"]["base"] == pytest.approx(metrics["eval_loss_before"], abs=1e-4)
    assert facts["losses"]["mine"] == pytest.approx(metrics["eval_loss_after"], abs=1e-4)
    code, out, _ = command(*common, "--max-length", 40)
    assert code == 0 and f"base  loss {facts['losses']['base']:.3f}  perplexity " in out or " cut at 40 tokens" in out
    mistake(command("evaluate", "--model", tiny_model, "--data", "none.jsonl"), "--data none.jsonl: no such file")
    mistake(command(*common, "--adapter", tmp_path / "nope"), "no such folder")
