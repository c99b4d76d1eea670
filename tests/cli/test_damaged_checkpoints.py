"""A checkpoint that a kill or a power cut has damaged is reported, and the run resumes from an older checkpoint."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from pypeft_fast.finetune.training import damage
from tests.cli.conftest import besides
from tests.cli.test_bad_input import mistake

FILES = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_config.json")
FILES = (*FILES, "adapter_model.safetensors")
OPTIONS = ["--save-every", 2, "--learning-rate", 0.01, "--dropout", 0.2]


@pytest.fixture
def finetune(command, tiny_model, dialogues):
    def run(output, *options, steps=4):
        common = ["--model", tiny_model, "--data", dialogues, "--output", output, "--batch-size", 4]
        common += ["--rank", 4, "--max-steps", steps, *OPTIONS]
        return command("finetune", "--keep-checkpoints", *besides(common, options))

    return run


@pytest.fixture
def killed(finetune, tmp_path):
    """(a complete run, a copy in the state after a kill before its end, with the checkpoints 2 and 4)."""
    assert finetune(tmp_path / "whole")[0] == 0
    killed = shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("metrics.json", "loss.png", "adapter_model.safetensors", "adapter_config.json"):
        (killed / name).unlink()
    return tmp_path / "whole", killed


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def overwrite(path, start, length):
    """Overwrites a part of a file with zeros, as a power cut leaves blocks that were not written."""
    content = bytearray(path.read_bytes())
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(content)


def test_every_cut_of_every_file_is_noticed(killed):
    folder = killed[1] / "checkpoint-4"
    assert damage.of_checkpoint(folder) is None
    for name in FILES:
        content = (folder / name).read_bytes()
        whole = len(content.rstrip())
        for length in {0, 1, 7, 8, 9, *range(0, whole, max(1, whole // 40)), whole - 1}:
            cut(folder / name, length)
            assert name in damage.of_checkpoint(folder), (name, length)
            (folder / name).write_bytes(content)
        (folder / name).unlink()
        assert damage.of_checkpoint(folder) == f"{name} is missing"
        (folder / name).mkdir()
        assert damage.of_checkpoint(folder) == f"{name} is missing"
        (folder / name).rmdir()
        (folder / name).write_bytes(b"\0" * len(content))
        assert name in damage.of_checkpoint(folder)
        (folder / name).write_bytes(content)
    assert damage.of_checkpoint(folder) is None


def test_zeros_amid_what_torch_saved_are_noticed(killed):
    folder = killed[1] / "checkpoint-4"
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        content = (folder / name).read_bytes()
        expected = damage.of_saved(folder / name, ()) or torch.load(folder / name, weights_only=False)
        for start in range(0, len(content), max(1, len(content) // 60)):
            overwrite(folder / name, start, 64)
            trouble = damage.of_saved(folder / name, damage.SAVED[name])
            if trouble is None:  # the part is padding, and the file reads the same
                assert str(torch.load(folder / name, weights_only=False)) == str(expected)
            (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("max_steps"), "has no max_steps"),
        (lambda s: s.update(global_step="4"), "has no global_step"),
        (lambda s: s.update(log_history=[]), "has no losses"),
        (lambda s: s.update(magic=1), "is no state of this version of transformers"),
        (lambda s: s.update(stateful_callbacks=3), "is no state of this version of transformers"),
    ],
)
def test_a_state_that_lacks_something(killed, change, says):
    path = killed[1] / "checkpoint-4" / "trainer_state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    assert says in damage.of_checkpoint(path.parent)


def test_a_file_of_another_kind(killed):
    folder = killed[1] / "checkpoint-4"
    torch.save({"step": 3}, folder / "optimizer.pt")
    assert damage.of_checkpoint(folder) == "optimizer.pt has no state, param_groups"
    torch.save(print, folder / "optimizer.pt")  # a pickle of a function
    assert "optimizer.pt is not what Trainer writes" in damage.of_checkpoint(folder)


@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "adapter_model.safetensors"])
def test_the_older_checkpoint_takes_its_place_and_the_run_ends_as_the_whole_one(finetune, killed, name):
    whole, parts = killed
    cut(parts / "checkpoint-4" / name, 0 if name == "trainer_state.json" else 300)
    code, out, err = finetune(parts, "--resume")
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if "damaged" in line]
    how = "is empty" if name == "trainer_state.json" else "is cut short"
    assert line.startswith(f"checkpoint-4 is damaged ({name} {how}") and line.endswith("going on from checkpoint-2")
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (whole, parts))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert damage.of_checkpoint(parts / "checkpoint-4") is None


def test_no_checkpoint_is_left(finetune, killed):
    parts = killed[1]
    cut(parts / "checkpoint-4" / "optimizer.pt", 100)
    cut(parts / "checkpoint-2" / "trainer_state.json", 0)
    says = (
        "checkpoint-4 is damaged (optimizer.pt",
        "checkpoint-2 is damaged (trainer_state.json is empty)",
        "--overwrite",
    )
    mistake(finetune(parts, "--resume"), *says)
    assert (parts / "checkpoint-4").exists() and (parts / "checkpoint-2").exists()
    assert finetune(parts, "--overwrite")[0] == 0


def test_a_checkpoint_that_is_whole_but_of_another_model(finetune, killed):
    parts = killed[1]
    for number in (2, 4):
        state = torch.load(parts / f"checkpoint-{number}" / "optimizer.pt")
        state["param_groups"][0]["params"].pop()
        torch.save(state, parts / f"checkpoint-{number}" / "optimizer.pt")
    shutil.rmtree(parts / "checkpoint-4")  # for the last step Trainer loads only the adapter
    code, _, err = finetune(parts, "--resume")
    assert code == 2 and "checkpoint-2 does not fit this run; start again with --overwrite: " in err


@pytest.mark.parametrize("moment", range(5))
def test_an_interruption_amid_a_checkpoint(finetune, tmp_path, monkeypatch, moment):
    """Ctrl-C after some files of checkpoint 4: the run resumes from what remains, and ends as the uninterrupted run."""
    from transformers import Trainer, TrainerState

    saves = [(Trainer, "save_model"), (Trainer, "_save_optimizer_and_scheduler"), (Trainer, "_save_scaler")]
    saves += [(Trainer, "_save_rng_state"), (TrainerState, "save_to_json")]
    owner, name = saves[moment]
    real = getattr(owner, name)

    def interrupted(self, *args, **kwargs):
        state = self if owner is TrainerState else self.state
        if state.global_step == 4:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        code, _, err = finetune(tmp_path / "parts", steps=6)
    assert code == 130 and "--resume" in err
    code, out, err = finetune(tmp_path / "parts", "--resume", steps=6)
    assert code == 0 and ("checkpoint-4 is damaged" in out) == (moment > 0) and "going on from" in out, err
    assert finetune(tmp_path / "whole", steps=6)[0] == 0
    first, second = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "bitfit", "bottleneck", "prompt", "prefix"])
def test_every_method_goes_on(command, tiny_model, dialogues, tmp_path, method):
    def finetune(output, *options):
        common = ["--model", tiny_model, "--data", dialogues, "--batch-size", 4, "--max-steps", 4, "--save-every", 2]
        common.append("--keep-checkpoints")
        fast = ["--learning-rate", 0.01, "--method", method, "--output", output]
        return command("finetune", *common, *fast, *options)

    assert finetune(tmp_path / "whole")[0] == 0
    parts = shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    (parts / "metrics.json").unlink()
    shutil.rmtree(parts / "checkpoint-4")
    before = load_file(parts / "checkpoint-2" / "adapter_model.safetensors")
    code, out, err = finetune(parts, "--resume")
    assert code == 0 and "checkpoint-2" in out, err
    first, second = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "parts"))
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(before[key], first[key]) for key in first)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_the_whole_one(finetune, tiny_model, dialogues, tmp_path):
    """SIGKILL and SIGTERM to a real process, mostly during the writing of a checkpoint."""
    random.seed(0)
    common = ["--model", tiny_model, "--data", dialogues, "--output", tmp_path / "parts", "--batch-size", "4"]
    common += ["--rank", 4, "--max-steps", 200, *OPTIONS]
    options = besides(common, ["--save-every", 1])
    command = [sys.executable, "-m", "pypeft_fast", "finetune", *map(str, options)]
    for number in range(4):
        seen = set(tmp_path.glob("parts/checkpoint-*"))
        run = subprocess.Popen([*command, "--resume"] if number else command, stderr=subprocess.PIPE, text=True)
        while run.poll() is None and len(set(tmp_path.glob("parts/checkpoint-*")) - seen) < 2:
            time.sleep(0.005)
        time.sleep(random.random() / 20)
        run.send_signal((signal.SIGKILL, signal.SIGTERM)[number % 2])
        _, err = run.communicate()
        assert run.returncode < 0 and "Traceback" not in err
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "going on from" in done.stdout, done.stderr
    assert finetune(tmp_path / "whole", "--save-every", 1, steps=200)[0] == 0
    first, second = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)
