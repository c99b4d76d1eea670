"""Invalid JSON, numbers and text in data, settings, options, models and adapters: one clear line each."""

import json
import shutil

import pytest

from tests.cli.conftest import besides
from tests.cli.test_bad_input import mistake

DIGITS, DEEP = "1" * 10_000, "[" * 100_000


@pytest.fixture
def finetune(command, tiny_model, dialogues, tmp_path):
    def run(*options, model=tiny_model, data=dialogues):
        common = ["--model", model, "--data", data, "--output", tmp_path / "out", "--max-steps", 1]
        return command("finetune", "--keep-checkpoints", *besides(common, options))

    return run


def test_settings(finetune, tmp_path):
    assert finetune("--save-every", 1)[0] == 0
    path = tmp_path / "out" / "finetune.json"
    good = path.read_text()
    settings = json.loads(good)
    missing = {name: value for name, value in settings.items() if name != "rank"}
    for text, says in (
        ("", "finetune.json: empty"), (" \n", "empty"), ("null", "an object is expected, not NoneType"),
        ("[]", "an object is expected, not list"), ("3", "not int"), (DIGITS, "too many digits"), (DEEP, "too deeply"),
        (good[:40], "not JSON"), (json.dumps(missing), "has no rank"),
        (json.dumps(settings | {"magic": 1}), "an unknown entry, magic"),
        (json.dumps(settings | {"earlier_checkpoints": 1}), "an unknown entry, earlier_checkpoints"),
        (json.dumps(settings | {"model": "\ud800"}), "--model was '\\ud800'"),
        (json.dumps(settings | {"model": "x" * 10**6}), "1000002 characters"),
        (json.dumps(settings | {"alpha": float("nan")}), "--alpha was nan"),
    ):  # fmt: skip
        path.write_text(text)
        mistake(finetune("--save-every", 1, "--resume"), "--resume: ", says.replace("an object", "a JSON object"))
    path.write_bytes(b"\xff")
    mistake(finetune("--save-every", 1, "--resume"), "not UTF-8")
    path.write_text(good)
    assert finetune("--save-every", 1, "--resume")[0] == 0


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", DIGITS, DEEP, '{"steps": 1}'])
def test_metrics_that_tell_nothing_do_not_make_a_run_complete(finetune, tmp_path, text):
    assert finetune("--save-every", 1)[0] == 0
    (tmp_path / "out" / "metrics.json").write_text(text)
    code, out, err = finetune("--save-every", 1, "--resume")
    assert code == 0 and "going on from" in out and "complete" not in out, err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 1


def test_a_complete_run_whose_adapter_was_lost_is_not_complete(finetune, tmp_path):
    assert finetune("--save-every", 1)[0] == 0
    (tmp_path / "out" / "adapter_model.safetensors").write_bytes(b"")
    code, out, _ = finetune("--save-every", 1, "--resume")
    assert code == 0 and "going on from" in out
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_size > 1000


@pytest.mark.parametrize("option", ["--rank", "--seed", "--max-steps", "--dropout", "--epochs", "--learning-rate"])
def test_options_of_ten_thousand_digits(finetune, option):
    result = finetune(option, DIGITS)
    mistake(result, option, "10000 characters")
    assert len(result[2]) < 1000


def test_options_that_are_no_text(finetune, command, tiny_model, tmp_path):
    mistake(finetune("--target-modules", "q_proj,\udcff"), "--target-modules holds '\\udcff'")
    mistake(finetune("--output", "\udcff"), "--output: '\\udcff' is not a valid name of a folder")
    mistake(finetune("--output", ""), "--output: '' is not a valid name of a folder")
    for option in ("--prompt", "--system"):
        options = {"--prompt": "hi"} | {option: "\udcff"}
        result = command("chat", "--model", tiny_model, *(a for pair in options.items() for a in pair))
        mistake(result, "holds '\\udcff'")
    mistake(command("chat", "--model", tiny_model, "--adapter", "\udcff"), "--adapter")


@pytest.mark.parametrize("name", ["$x", "a$b_{", "$\\foo$", "_x", "x" * 200])
def test_a_folder_s_name_is_no_formula(finetune, tmp_path, name):
    code, _, err = finetune("--save-every", 0, "--output", tmp_path / name)
    assert code == 0 and (tmp_path / name / "loss.png").is_file(), err


@pytest.mark.parametrize("text", ["", "null", "[]", "{}", DIGITS, DEEP, '{"model_type": "\\u001b[31m"}'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_model_s_files(command, tiny_model, tmp_path, name, text):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / name).write_text(text)
    code, _, err = command("chat", "--model", folder, "--prompt", "hi", "--max-new-tokens", 1)
    assert code in (0, 2) and "\x1b" not in err  # a model works without some of them
    if code == 2:
        assert f"pypeft-fast chat: --model {folder} cannot be loaded: " in err or "does not" in err or "template" in err


@pytest.mark.parametrize("value", [None, -1, 0, "x", [], 1.5])
@pytest.mark.parametrize("name", ["hidden_size", "num_attention_heads", "vocab_size", "rope_parameters"])
def test_a_model_s_config(command, tiny_model, tmp_path, name, value):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: value}))
    code, _, err = command("chat", "--model", folder, "--prompt", "hi", "--max-new-tokens", 1)
    assert code in (0, 2) and (code == 0 or err.splitlines()[-1].startswith("pypeft-fast chat: "))


@pytest.mark.parametrize(
    "template", ["{{ 1/0 }}", "{% if %}", "{{ messages[9].x.y }}", "{{ messages[0].content + 1 }}", "{{ nothing() }}"]
)
def test_a_chat_template_that_fails(command, finetune, tiny_model, tmp_path, template):
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    mistake(command("chat", "--model", folder, "--prompt", "hi"), "the tokenizer's chat template refuses")
    mistake(finetune(model=folder), "the chat template refuses it")


def test_a_table_of_positions_is_not_exceeded(command, finetune, tiny_model, tokenizer, tmp_path, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=48)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    chat = ["chat", "--model", tmp_path / "gpt2"]
    assert command(*chat, "--prompt", "hi", "--max-new-tokens", 1000)[0] == 0
    mistake(command(*chat, "--prompt", "hello " * 50), "this model reads at most 48")
    mistake(finetune("--method", "prompt", "--virtual-tokens", 40, model=tmp_path / "gpt2"), "and 40 virtual tokens")


def test_input_that_is_no_text(command, tiny_model, monkeypatch):
    def undecodable(prompt):
        return b"\xff".decode()

    monkeypatch.setattr("builtins.input", undecodable)
    code, _, err = command("chat", "--model", tiny_model)
    assert code == 2 and "the input is not valid text" in err


def test_a_model_whose_weights_are_nan(finetune, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code, _, err = finetune(model=folder)
    assert code == 2 and f"the loss before training is already nan: --model {folder} is damaged" in err
