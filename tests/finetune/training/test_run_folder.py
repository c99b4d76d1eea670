"""The folder of a run: only one run at a time writes it, and files of the user are not replaced silently."""

import subprocess
import sys

import pytest

from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training import run_folder


def test_one_run_at_a_time_writes_a_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from pypeft_fast.finetune.training.run_folder import alone\n"
        f"with alone(Path({str(tmp_path)!r})): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match="another finetune is writing it"), run_folder.alone(tmp_path):
            pass
        other.stdin.close()
        assert other.wait() == 0
    with run_folder.alone(tmp_path):
        assert (tmp_path / run_folder.LOCK_FILE).exists()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["metrics.json", "loss.png"])
def test_a_file_that_a_run_would_replace_is_named(name, tmp_path):
    (tmp_path / name).write_text("the user's")
    with pytest.raises(UserError, match=f"already holds {name}"):
        run_folder.open_new(tmp_path, overwrite=False)
    run_folder.open_new(tmp_path, overwrite=True)


def test_folders_that_a_failed_run_made_are_deleted_while_they_are_empty(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(KeyError), run_folder.alone(tmp_path / "mine" / "a" / "b"):
        raise KeyError
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with pytest.raises(UserError, match="cannot be written"), run_folder.alone(tmp_path / "mine" / "a" / ("b" * 300)):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with pytest.raises(KeyError), run_folder.alone(tmp_path / "a" / "b"):
        (tmp_path / "a" / "kept").touch()
        raise KeyError
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["kept"]
