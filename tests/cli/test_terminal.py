"""Text of data, files and models reaches the terminal without control characters."""

import io
import json
import logging
import shutil
import unicodedata

import pytest

from pypeft_fast.cli import terminal
from tests.cli.test_bad_input import mistake

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


def harmless(text):
    return all(unicodedata.category(c) not in ("Cc", "Cs", "Zl", "Zp") or c in "\n\t" for c in text)


def test_what_the_stream_cannot_write_is_escaped():
    stream = io.TextIOWrapper(io.BytesIO(), "ascii")
    terminal.say("é\x1b\ud800", file=stream)
    assert stream.buffer.getvalue() == b"\\xe9\\x1b\\ud800\n"


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({ESCAPE: 1}),
        json.dumps({"messages": [{"role": ESCAPE, "content": "a"}]}),
        ESCAPE,
    ],
)
def test_a_line_of_data_and_its_file_s_name(command, tiny_model, tmp_path, line):
    data = tmp_path / f"d{ESCAPE.replace('/', '')}\n.jsonl"
    data.write_text(line)
    result = command("finetune", "--model", tiny_model, "--data", data, "--output", tmp_path / "out")
    mistake(result, ".jsonl:1: ")
    assert harmless(result[2])


@pytest.mark.parametrize("option", ["--model", "--data", "--method", "--rank", "--target-modules", "--odd"])
def test_options(command, tiny_model, dialogues, tmp_path, option):
    common = {"--model": tiny_model, "--data": dialogues, "--output": tmp_path / "out"} | {option: ESCAPE}
    code, out, err = command("finetune", *(a for pair in common.items() for a in pair))
    assert code == 2 and harmless(out + err) and "x1b" in err and err.splitlines()[-1].startswith("pypeft-fast")


def test_a_forced_kernel_s_name(command, monkeypatch):
    monkeypatch.setenv("PYPEFT_FAST_KERNEL", ESCAPE)
    code, out, _ = command("info")
    assert code == 0 and "\\x1b" in out and harmless(out)


def test_an_adapter_s_files_and_name(command, tiny_model, dialogues, tmp_path):
    adapter = tmp_path / "adapter"
    common = ["--model", tiny_model, "--data", dialogues, "--max-steps", 1, "--save-every", 0]
    assert command("finetune", *common, "--output", adapter)[0] == 0
    config = json.loads((adapter / "adapter_config.json").read_text())

    def chat(folder):
        return command("chat", "--model", tiny_model, "--adapter", folder, "--prompt", "hi", "--max-new-tokens", 1)

    for change in ({"peft_type": ESCAPE}, {"task_type": ESCAPE}, {"target_modules": [ESCAPE]}, {ESCAPE: 1}):
        (adapter / "adapter_config.json").write_text(json.dumps(config | change))
        code, out, err = chat(adapter)
        assert harmless(out + err.replace("\r", "")), change
        assert code in (0, 2)
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    named = shutil.copytree(adapter, tmp_path / "a\x1b[31m")
    result = chat(named)
    mistake(result, "cannot name an adapter", "NAME=")
    assert harmless(result[2])


class Escaping:
    """A tokenizer that turns every answer into an escape sequence."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, *args, **kwargs):
        return self._tokenizer(*args, **kwargs)

    def decode(self, tokens, **kwargs):
        return f"line\n\ttab {ESCAPE}"


def test_a_model_s_answer(command, tiny_model, monkeypatch):
    from pypeft_fast.cli import chat

    load = chat.load_base

    def escaping(*args):
        model, tokenizer = load(*args)
        return model, Escaping(tokenizer)

    monkeypatch.setattr(chat, "load_base", escaping)
    code, out, _ = command("chat", "--model", tiny_model, "--prompt", "hi", "--max-new-tokens", 3)
    assert code == 0 and "line\n\ttab \\x1b]0;owned\\x07\\x1b[2J\\x9b31m" in out and harmless(out)


def test_what_is_typed_is_echoed_safely(command, tiny_model, monkeypatch):
    lines = iter([f"/{ESCAPE}", f"/adapter {ESCAPE}", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, out, err = command("chat", "--model", tiny_model)
    assert code == 0 and out.count("x1b]0;owned") == 2 and harmless(out)


def test_a_chat_template_and_the_warnings_of_transformers(command, tiny_model, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('" + ESCAPE + "') }}")
    result = command("chat", "--model", folder, "--prompt", "hi")
    assert result[0] == 2 and "\\x1b" in result[2] and harmless(result[2])
    (handler,) = [h for h in logging.getLogger("transformers").handlers if type(h) is logging.StreamHandler]
    monkeypatch.setattr(handler, "stream", io.StringIO())
    logging.getLogger("transformers").warning("of a file: %s", ESCAPE)
    assert "\\x1b" in (text := handler.stream.getvalue()) and harmless(text)
