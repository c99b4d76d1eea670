"""`resume` notices that a file of the run has other content, and names the file."""

import dataclasses
import json
import shutil

import pytest

from pypeft_fast.finetune.data.load import load_data
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training import run_folder
from pypeft_fast.finetune.training.hashes import hashes_of
from pypeft_fast.finetune.training.settings import Settings


def write(path, *answers):
    records = [{"prompt": f"q {i}", "completion": answer} for i, answer in enumerate(answers)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def settings(tmp_path, tiny_adapter):
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    return Settings(
        "tiny",
        write(tmp_path / "d.jsonl", "a", "b"),
        eval_data=write(tmp_path / "e.jsonl", "c"),
        chat_template=str(tmp_path / "t.jinja"),
        adapter=str(shutil.copytree(tiny_adapter, tmp_path / "start")),
    )


def read(settings):
    return hashes_of(settings, load_data(settings.data), load_data(settings.eval_data))


def resume(folder, settings):
    run_folder.check_settings(folder / "finetune.json", dataclasses.asdict(settings), read(settings))


CHANGES = {
    "data": lambda folder: write(folder / "d.jsonl", "b", "a"),
    "eval_data": lambda folder: write(folder / "e.jsonl", "c", "d"),
    "chat_template": lambda folder: (folder / "t.jinja").write_text("{{ messages}}"),
    "adapter": lambda folder: flip(folder / "start/adapter_model.safetensors"),
}


def flip(path):
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_an_error_of_resume_that_names_it(settings, tmp_path, name):
    run_folder.begin(tmp_path, settings, {}, read(settings))
    resume(tmp_path, settings)
    CHANGES[name](tmp_path)
    says = f"`resume`: `{name}`, {getattr(settings, name)}, has .*put the old content back, or start again with `over"
    with pytest.raises(UserError, match=says):
        resume(tmp_path, settings)


def test_other_bytes_of_the_same_examples_are_no_change(settings, tmp_path):
    run_folder.begin(tmp_path, settings, {}, read(settings))
    lines = [{"messages": list(example.messages)} for example in load_data(settings.data)]
    (tmp_path / "d.jsonl").write_text("\n\n".join(json.dumps(line) for line in lines))
    resume(tmp_path, settings)


def recorded(folder, change):
    saved = json.loads((folder / "finetune.json").read_text())
    (folder / "finetune.json").write_text(json.dumps(change(saved)))


@pytest.mark.parametrize("record", [None, "ab", ["ab"]])
def test_hashes_that_are_none_are_of_another_version(settings, tmp_path, record):
    run_folder.begin(tmp_path, settings, {}, read(settings))
    recorded(tmp_path, lambda saved: saved | {"sha256": record})
    with pytest.raises(UserError, match="has an unknown entry, sha256: another version of this command wrote it"):
        resume(tmp_path, settings)


@pytest.mark.parametrize("change", [lambda saved: {**saved, "sha256": {}}, lambda saved: saved.pop("sha256") and saved])
def test_a_run_of_a_version_without_these_hashes_goes_on(settings, tmp_path, change):
    run_folder.begin(tmp_path, settings, {}, read(settings))
    recorded(tmp_path, change)
    CHANGES["data"](tmp_path)
    resume(tmp_path, settings)


def test_an_adapter_that_the_run_itself_has_replaced_is_not_compared(settings, tmp_path):
    settings = dataclasses.replace(settings, adapter=str(tmp_path / "start" / ".." / "start"))
    run_folder.begin(tmp_path / "start", settings, {}, read(settings))
    CHANGES["adapter"](tmp_path)
    resume(tmp_path / "start", settings)


def test_the_config_of_an_adapter_in_another_layout_is_no_change(settings, tmp_path):
    run_folder.begin(tmp_path, settings, {}, read(settings))
    config = tmp_path / "start/adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(dict(reversed(fields.items()))))
    resume(tmp_path, settings)
    config.write_text(json.dumps(fields | {"lora_alpha": 99}))
    with pytest.raises(UserError, match="`adapter`.*has another config or other weights"):
        resume(tmp_path, settings)
