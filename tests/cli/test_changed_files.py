"""`finetune --resume` after a file of the run has changed; a new run from its finetune.json."""

import json

import pytest

from tests.cli.test_bad_input import mistake
from tests.finetune.conftest import TEMPLATE


@pytest.fixture
def files(dialogues, tmp_path):
    for name in ("d.jsonl", "e.jsonl"):
        (tmp_path / name).write_bytes(dialogues.read_bytes())
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    return tmp_path


def changed(path):
    """Leaves the last line out."""
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def test_one_adapter(command, tiny_model, files):
    given = ["--data", files / "d.jsonl", "--eval-data", files / "e.jsonl", "--chat-template", files / "t.jinja"]
    options = ["--model", tiny_model, *given, "--max-steps", 1, "--output", files / "a"]
    assert command("finetune", *options)[0] == 0
    assert "is complete" in command("finetune", *options, "--resume")[1]
    for option, name in (("--data", "d.jsonl"), ("--eval-data", "e.jsonl")):
        before = (files / name).read_bytes()
        changed(files / name)
        says = f"--resume: {option}, {files / name}, has other examples than in the run to go on with; put the old"
        mistake(command("finetune", *options, "--resume"), says, "or start again with --overwrite")
        (files / name).write_bytes(before)
    (files / "t.jinja").write_text(TEMPLATE + "{# 2 #}")
    mistake(command("finetune", *options, "--resume"), f"--chat-template, {files / 't.jinja'}, has another text")

    (files / "t.jinja").write_text(TEMPLATE)
    config = json.loads((files / "a" / "finetune.json").read_text())
    (files / "c.json").write_text(json.dumps(config | {"rank": 3}))
    says = "--rank was 16 in the run to go on with and is 3 now"
    mistake(command("finetune", "--config", files / "c.json", "--resume"), says)

    # A new run from the settings of that run takes the files as they are now.
    code, _, err = command("finetune", "--config", files / "a" / "finetune.json", "--output", files / "b")
    assert code == 0, err


@pytest.mark.parametrize("by_product", [False, True])
def test_several_adapters(command, tiny_model, files, by_product):
    if by_product:
        lines = [f'{{"prompt": "q {i}", "completion": "{i}", "product": "{"ed"[i < 9]}"}}\n' for i in range(18)]
        (files / "e.jsonl").write_text("".join(lines))
    data = ["--by-product", "--data", files / "e.jsonl"]
    data = data if by_product else ["--data", f"d={files / 'd.jsonl'}", "--data", f"e={files / 'e.jsonl'}"]
    options = ["--model", tiny_model, *data, "--max-steps", 1, "--save-every", 0, "--output", files / "a"]
    assert command("finetune", *options)[0] == 0
    assert "is complete" in command("finetune", *options, "--resume")[1]
    changed(files / "e.jsonl")
    says = f"--resume: --data of e, {files / 'e.jsonl'}, has other examples"
    mistake(command("finetune", *options, "--resume"), says)
