"""--overwrite and the clean-up of a run delete only checkpoints that a run has written, and no other files."""

import json
import os
import shutil

import pytest

from tests.cli.test_bad_input import mistake


@pytest.fixture
def finetune(command, tiny_model, dialogues, tmp_path):
    def run(*options, steps=2, save_every=2):
        common = ["--model", tiny_model, "--data", dialogues, "--output", tmp_path / "run", "--batch-size", 4]
        return command(
            "finetune", *common, "--max-steps", steps, "--save-every", save_every, "--keep-checkpoints", *options
        )

    return run


@pytest.fixture
def run(tmp_path, finetune):
    """The folder of a complete run, with the checkpoints 1 and 2."""
    assert finetune(save_every=1)[0] == 0
    return tmp_path / "run"


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_a_run_did_not_write_stays_and_is_named(finetune, run, tmp_path):
    final = shutil.copytree(run / "checkpoint-2", run / "checkpoint-final")
    mine = shutil.copytree(run / "checkpoint-2", run / "checkpoint-100")
    (mine / "notes.txt").write_text("mine")
    with_folder = shutil.copytree(run / "checkpoint-2", run / "checkpoint-7")
    (with_folder / "merged").mkdir()
    (with_folder / "merged" / "model.bin").write_text("mine")
    elsewhere = shutil.copytree(run / "checkpoint-2", tmp_path / "elsewhere")
    os.symlink(elsewhere, run / "checkpoint-8")
    (run / "checkpoint-9").write_text("a file")
    kept = {folder: content(folder) for folder in (final, mine, with_folder, elsewhere)}

    code, out, err = finetune("--overwrite")
    assert code == 0, err
    assert {folder: content(folder) for folder in kept} == kept
    assert (run / "checkpoint-9").read_text() == "a file" and (run / "checkpoint-8").is_symlink()
    assert not (run / "checkpoint-1").exists() and (run / "checkpoint-2").exists()
    for name, why in (
        ("checkpoint-final", "not a folder checkpoint-STEP"), ("checkpoint-100", "it holds notes.txt"),
        ("checkpoint-7", "it holds merged"), ("checkpoint-8", "not a folder"), ("checkpoint-9", "not a folder"),
    ):  # fmt: skip
        assert f"{name} stays: {why}" in out


def test_what_a_kill_left_of_a_save_is_a_run_s_own(finetune, run):
    (run / "checkpoint-1" / ".saving-abc").mkdir()
    (run / "checkpoint-1" / ".saving-abc" / "adapter_model.safetensors").write_bytes(b"half")
    (run / "checkpoint-1" / f"adapter_config.json.{'0' * 32}.new").write_text("{}")
    assert finetune("--overwrite")[0] == 0 and not (run / "checkpoint-1").exists()


def test_a_run_tidies_up_only_after_itself(finetune, run):
    mine = shutil.copytree(run / "checkpoint-2", run / "checkpoint-3")
    (mine / "notes.txt").write_text("mine")
    kept = content(mine)
    code, _, err = finetune("--overwrite", steps=8)
    assert code == 0, err
    assert sorted(p.name for p in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6", "checkpoint-8"]
    assert content(mine) == kept


def test_a_run_does_not_go_on_from_what_an_earlier_one_left(finetune, run, monkeypatch):
    mine = shutil.copytree(run / "checkpoint-2", run / "checkpoint-6")
    (mine / "notes.txt").write_text("mine")
    state = json.loads((mine / "trainer_state.json").read_text())
    (mine / "trainer_state.json").write_text(json.dumps(state | {"global_step": 6, "max_steps": 8}))
    from pypeft_fast.finetune.training.trainer import TimedTrainer

    real = TimedTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == at:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TimedTrainer, "training_step", interrupted)
        at = 1
        code, _, err = finetune("--overwrite", steps=8)
        assert code == 130 and "--resume" not in err
        mistake(finetune("--resume", steps=8), "no complete checkpoint")
        at = 3
        assert finetune("--overwrite", steps=8)[0] == 130
        at = 7  # the run has then written its own checkpoint-6 into that folder
        code, out, _ = finetune("--resume", steps=8)
        assert code == 130 and "going on from" in out and "checkpoint-2" in out
    code, out, err = finetune("--resume", steps=8)
    assert code == 0 and "checkpoint-6" in out, err
    assert (mine / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "metrics.json", "loss.png", "finetune.json"])
def test_a_folder_in_the_place_of_a_file_is_named_before_any_work(finetune, tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    mistake(finetune("--overwrite"), f"{name} in it is not a file")


def test_a_disk_that_is_full(finetune, tmp_path, monkeypatch):
    import torch

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        code, _, err = finetune(steps=4)
    assert code == 2 and f"{tmp_path / 'run' / 'checkpoint-2'} cannot be written" in err and "Traceback" not in err
