"""--report-to: Trainer's own reporters get the losses of a run, and a package that is missing is named."""

import json
import sys

import pytest

from tests.cli.test_bad_input import mistake


@pytest.fixture
def finetune(command, tiny_model, dialogues, tmp_path):
    def run(*options, data=("--data",)):
        data = [*data, dialogues] if data == ("--data",) else data
        common = ["--model", tiny_model, "--output", tmp_path / "a", "--rank", 2, "--max-steps", 3, "--eval-every", 2]
        return command("finetune", *common, *data, *options)

    return run


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing(finetune, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    says = f"--report-to {name} needs {name}, not installed here; run: pip install {name}"
    mistake(finetune("--report-to", name), says)
    assert not (tmp_path / "a").exists()


def test_a_name_that_is_none(finetune):
    mistake(finetune("--report-to", "tensorbord"), "--report-to", "'tensorbord'")


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.glob("runs/*")
    found = EventAccumulator(str(events)).Reload()
    return {tag: [[event.step, event.value] for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def check(folder):
    """The logged losses are those in metrics.json, which has the loss before training at step 0 too."""
    metrics, logged = json.loads((folder / "metrics.json").read_text()), scalars(folder)
    for tag, expected in (("train/loss", metrics["loss_history"]["train"]), ("eval/loss", None)):
        expected = expected or metrics["loss_history"]["held_out"][1:]
        assert [step for step, _ in logged[tag]] == [step for step, _ in expected]
        assert [loss for _, loss in logged[tag]] == pytest.approx([loss for _, loss in expected], rel=1e-6)


def test_tensorboard_gets_the_losses_of_the_last_run(finetune, tmp_path):
    assert finetune("--report-to", "tensorboard")[0] == 0
    check(tmp_path / "a")
    assert finetune("--report-to", "tensorboard", "--overwrite", "--seed", 1)[0] == 0
    check(tmp_path / "a")


def test_several_adapters(finetune, dialogues, tmp_path, monkeypatch):
    data = ["--data", f"desk={dialogues}", "--data", f"billing={dialogues}"]
    monkeypatch.setattr("pypeft_fast.cli.finetune.check_reporters", lambda names: None)
    mistake(finetune("--report-to", "wandb", data=data), "--report-to wandb has one run in a process", "tensorboard")
    monkeypatch.undo()
    assert finetune("--report-to", "tensorboard", data=data)[0] == 0
    for name in ("desk", "billing"):
        check(tmp_path / "a" / name)
