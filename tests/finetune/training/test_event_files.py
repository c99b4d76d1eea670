"""`overwrite` deletes the event files that a run has written for TensorBoard, and no other files."""

import pytest
from torch.utils.tensorboard import SummaryWriter

from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training import event_files, run_folder
from pypeft_fast.finetune.training.settings import Settings


def write(folder, **options):
    with SummaryWriter(folder, **options) as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    return set(folder.iterdir())


def test_only_files_of_a_run_are_deleted(tmp_path):
    runs = tmp_path / "runs"
    write(runs / "one", filename_suffix=event_files.SUFFIX)
    theirs = write(runs / "theirs")
    write(runs / "both", filename_suffix=event_files.SUFFIX)
    (runs / "both" / "notes.txt").write_text("mine")
    (runs / "empty").mkdir()
    (runs / "link").symlink_to(write(tmp_path / "elsewhere", filename_suffix=event_files.SUFFIX).pop().parent)
    run_folder.begin(tmp_path, Settings("m", "d"), {}, {})
    left = {path.relative_to(runs).as_posix() for path in runs.rglob("*")}
    assert left == {"theirs", "both", "both/notes.txt", "empty", "link", *(f"theirs/{p.name}" for p in theirs)}
    assert list((tmp_path / "elsewhere").iterdir())


def test_the_folder_goes_with_its_last_file(tmp_path):
    write(tmp_path / "runs" / "one", filename_suffix=event_files.SUFFIX)
    event_files.remove(tmp_path)
    assert not list(tmp_path.iterdir())
    event_files.remove(tmp_path)


def test_a_file_that_cannot_be_deleted(tmp_path, monkeypatch):
    write(tmp_path / "runs" / "one", filename_suffix=event_files.SUFFIX)

    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.unlink", refused)
    with pytest.raises(UserError, match="an event file in .*runs cannot be deleted: "):
        event_files.remove(tmp_path)
