"""Writing of whole files: of regular files, links, pipes and folders."""

import os

import pytest

from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.whole_files import new_folder, write_whole


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    """As /dev/null and /dev/stdout have to stay."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, b"content")
    assert os.read(reader, 100) == b"content" and pipe.is_fifo() and not pipe.is_file()
    os.close(reader)


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "file").read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_a_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} cannot be written: Is a directory"):
        write_whole(tmp_path, b"content")


def test_files_of_a_new_folder_have_the_mode_of_new_files(tmp_path):
    with new_folder(tmp_path / "made") as scratch:
        (scratch / "plain").touch()
        (scratch / "private").touch(0o600)
    (tmp_path / "new").touch()
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "made").iterdir()}
    assert modes == dict.fromkeys(("plain", "private"), (tmp_path / "new").stat().st_mode)
