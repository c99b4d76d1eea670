"""--chat-template: a template from a file is stored with the adapter, and whatever uses the adapter uses it."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from tests.cli.conftest import besides
from tests.cli.test_bad_input import mistake

OTHER = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


@pytest.fixture
def template(tmp_path):
    (tmp_path / "other.jinja").write_text(OTHER)
    return tmp_path / "other.jinja"


@pytest.fixture
def finetune(command, tiny_model, dialogues, tmp_path):
    def run(*options, name="a"):
        common = ["--model", tiny_model, "--data", dialogues, "--output", tmp_path / name, "--save-every", 0]
        common += [] if "--adapter" in options else ["--rank", 2]
        return command("finetune", *besides([*common, "--max-steps", 2, "--learning-rate", 0.01], options))

    return run


def test_an_adapter_brings_its_template(finetune, command, tiny_model, dialogues, tmp_path, template, tokenizer):
    assert finetune("--chat-template", template, "--eval-data", dialogues)[0] == 0
    assert finetune(name="b")[0] == 0
    adapter = tmp_path / "a"
    assert (adapter / "chat_template.jinja").read_text() == OTHER
    assert not (tmp_path / "b" / "chat_template.jinja").exists()
    assert "chat_template.jinja" in (adapter / "README.md").read_text()

    data = ["--model", tiny_model, "--data", dialogues, "--json"]
    losses = json.loads(command("evaluate", *data, "--adapter", adapter, "--adapter", tmp_path / "b")[1])["losses"]
    expected = json.loads((adapter / "metrics.json").read_text())["eval_loss_after"]
    assert losses["a"] == pytest.approx(expected, abs=1e-5)
    (adapter / "chat_template.jinja").unlink()
    without = json.loads(command("evaluate", *data, "--adapter", adapter, "--adapter", tmp_path / "b")[1])["losses"]
    assert abs(without["a"] - expected) > 0.01 and (without["b"], without["base"]) == (losses["b"], losses["base"])

    (adapter / "chat_template.jinja").write_text(OTHER)
    merged = tmp_path / "merged"
    assert command("merge", "--model", tiny_model, "--adapter", adapter, "--output", merged)[0] == 0
    assert AutoTokenizer.from_pretrained(merged).chat_template == OTHER

    # A run without a template replaces the adapter and its template.
    assert finetune("--overwrite")[0] == 0
    assert not (adapter / "chat_template.jinja").exists()


@pytest.mark.parametrize("many", [False, True])
def test_training_goes_on_with_the_template_of_the_adapter(finetune, dialogues, tmp_path, template, many):
    assert finetune("--chat-template", template)[0] == 0
    data = ["--data", f"x={dialogues}", "--data", f"y={dialogues}"] if many else []
    options = ["--adapter", tmp_path / "a", "--save-every", 1, "--keep-checkpoints", *data]
    code, out, err = finetune(*options, name="b")
    assert code == 0, err
    stored = tmp_path / "a" / "chat_template.jinja"
    assert out.count(f"chat template: that of --adapter, {stored}") == 1
    folders = [tmp_path / "b" / name for name in (("x", "y") if many else ("",))]
    for folder in folders:
        assert (folder / "chat_template.jinja").read_text() == OTHER
        assert json.loads((folder / "finetune.json").read_text())["chat_template"] == str(stored)
        (folder / "metrics.json").unlink()
        (folder / "chat_template.jinja").unlink()
    if not many:  # a run of several adapters writes no checkpoint after the last step
        shutil.rmtree(tmp_path / "b" / "checkpoint-2")
    code, _, err = finetune(*options, "--resume", name="b")
    assert code == 0, err
    assert all((folder / "chat_template.jinja").read_text() == OTHER for folder in folders)


def test_a_template_of_the_command_replaces_that_of_the_adapter(finetune, tmp_path, template):
    assert finetune("--chat-template", template)[0] == 0
    (tmp_path / "new.jinja").write_text(OTHER.replace("<|im_end|>", "!<|im_end|>"))
    code, out, err = finetune("--adapter", tmp_path / "a", "--chat-template", tmp_path / "new.jinja", name="b")
    assert code == 0, err
    assert "chat template: that of" not in out
    assert (tmp_path / "b" / "chat_template.jinja").read_text() == OTHER.replace("<|im_end|>", "!<|im_end|>")


def test_a_conversation_has_the_template_of_the_adapter_in_use(tiny_model, tiny_adapter, tmp_path):
    from pypeft_fast.finetune.base_models import load_base
    from pypeft_fast.finetune.chat import Chat

    for name in ("own", "other"):
        shutil.copytree(tiny_adapter, tmp_path / name)
    (tmp_path / "other" / "chat_template.jinja").write_text(OTHER)
    model, tokenizer = load_base(str(tiny_model))
    usual = tokenizer.chat_template
    chat = Chat(model, tokenizer, {name: tmp_path / name for name in ("other", "own")})
    found = [tokenizer.chat_template]
    for name in ("own", "other", None):
        chat.use(name)
        found.append(tokenizer.chat_template)
    assert found == [OTHER, usual, OTHER, usual]


def test_the_server_renders_with_the_template_of_the_adapter(tiny_model, tiny_adapter, tmp_path):
    from pypeft_fast.finetune.base_models import load_base
    from pypeft_fast.serve.adapters import Adapters
    from pypeft_fast.serve.limits import Limits
    from pypeft_fast.serve.prompts import Prompts

    shutil.copytree(tiny_adapter, tmp_path / "other")
    (tmp_path / "other" / "chat_template.jinja").write_text(OTHER)
    model, tokenizer = load_base(str(tiny_model))
    limits = Limits(rows=2, queue=2, context=64, cells=256, adapters=2)
    adapters, prompts = Adapters(model, "base", limits), Prompts(model, tokenizer, 64)
    adapters.load("other", tmp_path / "other")
    messages = [{"role": "user", "content": "why"}]
    texts = [
        tokenizer.decode(prompts.encode(messages, adapters.find(name).template)) for name in ("base", "other", "base")
    ]
    assert texts[1] == "[user] why<|im_end|>[assistant] " and texts[0] == texts[2] != texts[1]


def test_a_template_that_ends_no_answer(finetune, template):
    warning = "warning: the --chat-template ends no answer with a special token of the tokenizer"
    assert warning not in finetune("--chat-template", template)[1]
    template.write_text(OTHER.replace("<|im_end|>", "[end]"))
    code, out, _ = finetune("--chat-template", template, "--overwrite")
    assert code == 0 and warning in out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file"),
        (b" \n", "empty; a template renders the messages"),
        (b"\xff", "not UTF-8 text"),
        (b"a\n{% for m in messages %}", "line 2: Unexpected end of template"),
        (b"Hello", "the chat template writes no answer: it renders 'Hello' whatever the answer is, and nothing can"),
        (b"{{ raise_exception('no') }}", "dialogues.jsonl:1: the chat template refuses it: no"),
    ],
)
def test_a_template_that_cannot_be_used(finetune, tmp_path, content, says):
    path = tmp_path / "t.jinja"
    if content is not None:
        path.write_bytes(content)
    mistake(finetune("--chat-template", path), says)
    assert not (tmp_path / "a" / "finetune.json").exists()
