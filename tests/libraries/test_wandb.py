"""--report-to wandb: the losses and the files of a run in offline mode, and what is said without a login."""

import json
import os
import pty
import struct
import subprocess
import sys

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.ready import make_ready
from pypeft_fast.finetune.training.settings import Settings
from pypeft_fast.finetune.training.train import fine_tune
from tests.finetune.conftest import dialogues, tiny_model, tokenizer  # noqa: F401
from tests.interpreter import python

WITHOUT_LOGIN = {"WANDB_MODE": "online", "WANDB_API_KEY": "", "NETRC": os.devnull, "WANDB_CONFIG_DIR": os.devnull}


@pytest.fixture
def arguments(tiny_model, dialogues, tmp_path):  # noqa: F811
    (tmp_path / "here").mkdir()
    common = ["--model", tiny_model, "--data", dialogues, "--output", tmp_path / "a", "--rank", 2, "--max-steps", 3]
    return ["finetune", *common, "--eval-every", 2, "--no-report", "--report-to", "wandb"]


def records(path):
    """The records of a .wandb file, which has LevelDB's format of a log: blocks of 32 KiB, in which a record, or a part
    of one, has a header of its checksum, its length and its kind: 1 whole, 2 first, 3 middle, 4 last."""
    content, at, parts = path.read_bytes(), 7, []
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):
            yield Record.FromString(b"".join(parts))
            parts = []


def logged(folder, key):
    """[(step, value)] of a key in the history of the only run in this folder."""
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = []
    for record in records(path):
        row = {its.key or ".".join(its.nested_key): json.loads(its.value_json) for its in record.history.item}
        if key in row:
            found.append([row["train/global_step"], row[key]])
    return found


def test_the_losses_are_in_the_output_folder_and_nothing_is_elsewhere(arguments, tmp_path):
    done = python("-m", "pypeft_fast", *arguments, folder=tmp_path / "here", WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "here").iterdir())
    history = json.loads((tmp_path / "a" / "metrics.json").read_text())["loss_history"]
    for key, expected in (("train/loss", history["train"]), ("eval/loss", history["held_out"][1:])):
        found = logged(tmp_path / "a", key)
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [loss for _, loss in found] == pytest.approx([loss for _, loss in expected], rel=1e-6)


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_without_a_login_an_error_comes_before_the_work(arguments, tmp_path, on_a_terminal):
    """W&B would ask for an account on a terminal, after the model is loaded."""
    ours, theirs = pty.openpty() if on_a_terminal else os.pipe()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | WITHOUT_LOGIN
    command = [sys.executable, "-m", "pypeft_fast", *map(str, arguments)]
    given = theirs if on_a_terminal else subprocess.DEVNULL
    code = subprocess.run(command, env=environment, stdin=given, stdout=theirs, stderr=theirs, timeout=60).returncode
    said = os.read(ours, 10_000)
    os.close(theirs)
    os.close(ours)
    assert code == 2 and b"--report-to wandb: no login to W&B: " in said, said
    assert b"run: wandb login, or set WANDB_MODE=offline" in said and b"Traceback" not in said
    assert not (tmp_path / "a").exists()


def test_turned_off(arguments):
    done = python("-m", "pypeft_fast", *arguments, WANDB_DISABLED="true")
    assert done.returncode == 2 and "--report-to wandb does not go with WANDB_DISABLED; unset" in done.stderr


@pytest.fixture
def run(tiny_model, dialogues, monkeypatch):  # noqa: F811
    """run(folder): trains in this process, offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    settings = Settings(str(tiny_model), str(dialogues), rank=2, max_steps=1)

    def go(folder):
        ready = make_ready(settings, load_data(str(dialogues)))
        folder.mkdir()
        fine_tune(ready.model, ready.data, ready.collator, settings, folder, None, report_to=["wandb"])

    return go


def test_two_runs_of_a_process_are_two_runs(run, tmp_path):
    for name in ("a", "b"):
        run(tmp_path / name)
        assert len(logged(tmp_path / name, "train/loss")) == 1 and wandb.run is None


def test_a_server_that_refuses_the_run_is_an_error_of_the_user(run, tmp_path, monkeypatch):
    def refused(**options):
        raise wandb.errors.CommError("no such\nentity")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(UserError, match="`report_to` wandb: W&B did not start the run; .*: no such entity"):
        run(tmp_path / "a")
