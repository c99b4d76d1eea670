"""Chat templates that refuse a role, and tokenizers without a chat template."""

import builtins
import json
import shutil

import pytest
from transformers import AutoTokenizer

from tests.cli.test_bad_input import mistake
from tests.finetune.conftest import TEMPLATE

NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


@pytest.fixture
def chat(command, tiny_model, tmp_path):
    """chat(template or None, options...) runs `chat` on the tiny model with this chat template."""

    def run(template, *options):
        folder = tmp_path / "model"
        if not folder.exists():
            shutil.copytree(tiny_model, folder)
            (folder / "chat_template.jinja").unlink()
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer.chat_template = template
            tokenizer.save_pretrained(folder)
        return command("chat", "--model", folder, "--max-new-tokens", 4, *options)

    return run


@pytest.fixture
def type_in(monkeypatch):
    def lines(*typed):
        waiting = iter([*typed, "/quit"])
        monkeypatch.setattr(builtins, "input", lambda prompt: next(waiting))

    return lines


def test_a_template_that_refuses_the_system_role(chat, type_in):
    says = ["the tokenizer's chat template refuses a message of the role user after system: System role not supported"]
    mistake(chat(NO_SYSTEM + TEMPLATE, "--system", "be nice", "--prompt", "hi"), *says)
    type_in("hello")
    code, _, err = chat(NO_SYSTEM + TEMPLATE, "--system", "be nice")
    assert code == 2 and says[0] in err and "Traceback" not in err
    assert chat(NO_SYSTEM + TEMPLATE, "--prompt", "hi")[0] == 0


def test_without_a_template(chat, type_in):
    mistake(chat(None, "--system", "be nice", "--prompt", "hi"), "--system: this tokenizer has no chat template")
    mistake(chat(None, "--prompt", ""), "the prompt is empty, and this tokenizer has no chat template")
    alone = chat(None, "--prompt", "the sky")[1].strip()
    type_in("what is blue", "the sky")
    code, out, _ = chat(None)
    assert code == 0 and "no chat template: the model continues each line without the earlier lines" in out
    assert alone and out.rstrip().endswith(alone)


def test_training_without_a_template_takes_pairs_only(chat, command, dialogues, tmp_path):
    chat(None, "--prompt", "hi")  # creates the folder of the model
    system = {"messages": [{"role": r, "content": "a b"} for r in ("system", "user", "assistant")]}
    (tmp_path / "data.jsonl").write_text(json.dumps(system) + "\n" + json.dumps(system).replace("a b", "c d"))
    options = ["--model", tmp_path / "model", "--output", tmp_path / "out", "--max-steps", 1]
    mistake(command("finetune", "--data", tmp_path / "data.jsonl", *options), "data.jsonl:", "has no chat template")
    assert command("finetune", "--data", dialogues, *options)[0] == 0
