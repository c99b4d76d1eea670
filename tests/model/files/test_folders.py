"""Which adapters a folder holds, and the folders that are refused."""

import shutil

import pytest

from pypeft_fast.model.files.folders import adapter_folders
from tests.model.files.made import CONFIG


@pytest.fixture
def folder(tmp_path):
    for path in (tmp_path, tmp_path / "desk", tmp_path / "checkpoint-10"):
        path.mkdir(exist_ok=True)
        (path / CONFIG).write_text("{}")
    return tmp_path


def test_a_trainers_checkpoints_are_left_out_unless_named(folder):
    assert list(adapter_folders(folder)) == ["default", "desk"]
    assert adapter_folders(folder, ["checkpoint-10"]) == {"checkpoint-10": folder / "checkpoint-10"}
    (folder / CONFIG).unlink()
    shutil.rmtree(folder / "desk")
    with pytest.raises(FileNotFoundError, match="no adapter but checkpoints of a training run, checkpoint-10; give"):
        adapter_folders(folder)


def test_names_may_be_a_generator(folder):
    assert list(adapter_folders(folder, (name for name in ["desk", "default"]))) == ["desk", "default"]


def test_two_folders_of_the_name_default(folder):
    (folder / "default").mkdir()
    (folder / "default" / CONFIG).write_text("{}")
    for names in (None, ["default"]):
        with pytest.raises(ValueError, match=f"{folder} and {folder}/default both hold .* rename the subfolder"):
            adapter_folders(folder, names)
    assert list(adapter_folders(folder, ["desk"])) == ["desk"]
    (folder / CONFIG).unlink()
    assert adapter_folders(folder)["default"] == folder / "default"


def test_a_folder_that_cannot_name_an_adapter(folder):
    (folder / "desk").rename(folder / "v1.0")
    for names in (None, ["v1.0"]):
        with pytest.raises(ValueError, match="v1.0 holds an adapter, but .* contains '.'.*rename the folder, or"):
            adapter_folders(folder, names)
    assert list(adapter_folders(folder, ["default"])) == ["default"]


@pytest.mark.parametrize(
    "names,error,words",
    [
        (3, TypeError, "names=3 must be a list of texts"),
        ([3], TypeError, r"names=\[3\] must be a list of texts"),
        (iter(()), ValueError, r"names=\[\] must be a list of at least one name"),
    ],
)
def test_names_that_are_none(folder, names, error, words):
    with pytest.raises(error, match=words):
        adapter_folders(folder, names)


def test_no_folder():
    with pytest.raises(TypeError, match="folder=None is a NoneType; give the path"):
        adapter_folders(None)
