"""An installation without the extra [cli]: one part works, and the rest names in one line what to install."""

import sys

import pytest

from tests.cli.conftest import besides
from tests.cli.test_bad_input import mistake
from tests.interpreter import python

EXTRA = ("accelerate", "gguf", "jinja2", "yaml", "chatterbot_corpus", "pandas", "pyarrow", "matplotlib", "rich")
# The packages of EXTRA that PyTorch, PEFT and huggingface_hub do not install.
ABSENT = ("gguf", "chatterbot_corpus", "pandas", "pyarrow", "matplotlib", "rich")
HINT = 'not installed here; run: pip install "pypeft-fast[cli]"\n'
FORMS = {
    "d.csv": "prompt,completion\na,b\n",
    "d.parquet": "no file is read",
    "d.jsonl": '{"prompt": "a", "response": "b"}',
}


def hide(monkeypatch, *modules):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)  # the module is then neither found nor imported


@pytest.fixture
def run(command, tiny_model, dialogues, tiny_adapter, tmp_path):
    """run("chat", options...) -> (exit code, stdout, stderr) of a subcommand with its required arguments."""
    model, data = ["--model", tiny_model], ["--data", dialogues]
    given = {
        "info": [],
        "merge": [*model, "--adapter", tiny_adapter, "--output", tmp_path / "merged"],
        "chat": [*model, "--prompt", "hi", "--max-new-tokens", 1],
        "evaluate": [*model, *data],
        "finetune": [*model, *data, "--output", tmp_path / "a"],
        "plan": model,
        "advise": [*model, *data],
    }

    def run(name, *options):
        return command(name, *besides(given[name], options))

    return run


@pytest.mark.parametrize("name", ["finetune", "evaluate", "chat"])
def test_what_needs_the_extra_names_it(run, monkeypatch, name):
    hide(monkeypatch, *EXTRA)
    mistake(run(name), f"pypeft-fast {name}: this needs ", HINT)


@pytest.mark.parametrize("module", ["accelerate", "matplotlib", "jinja2", "tqdm"])
def test_each_package_is_named(run, monkeypatch, tmp_path, module):
    hide(monkeypatch, module)
    mistake(run("finetune"), f"this needs {module}, {HINT}")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("data", "modules", "says"),
    [
        ("d.csv", ["pandas"], "pandas"),
        ("d.parquet", ["pyarrow"], "pyarrow"),
        ("d.parquet", ["pandas", "pyarrow"], "pandas, pyarrow"),
        ("chatterbot:food", ["yaml"], "pyyaml"),
        ("chatterbot:food", ["chatterbot_corpus"], "chatterbot-corpus"),
    ],
)
def test_each_form_of_data(run, monkeypatch, tmp_path, data, modules, says):
    for name, text in FORMS.items():
        (tmp_path / name).write_text(text)
    hide(monkeypatch, *modules)
    path = data if ":" in data else tmp_path / data
    mistake(run("evaluate", "--data", path), f"this needs {says}, {HINT}")
    mistake(run("finetune", "--data", path), f"this needs {says}, {HINT}")


def test_a_plan_needs_rich(run, monkeypatch):
    hide(monkeypatch, "rich")
    mistake(run("plan"), f"this needs rich, {HINT}")


@pytest.mark.parametrize("module", ["accelerate", "jinja2", "matplotlib", "rich", "tqdm"])
def test_an_advice_names_each_package(run, monkeypatch, module):
    hide(monkeypatch, module)
    mistake(run("advise"), f"this needs {module}, {HINT}")


def test_smollm2_that_is_not_unpacked_yet(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PYPEFT_FAST_CACHE", str(tmp_path / "cache"))
    hide(monkeypatch, "gguf")
    for name in ("finetune", "evaluate", "chat", "merge"):
        mistake(run(name, "--model", "smollm2"), f"this needs gguf, {HINT}")


def test_what_works_without_it(tiny_model, tiny_adapter, tmp_path):
    """Runs in a new process, in which no library has imported these packages."""
    program = f"""
import sys
for name in {ABSENT}:
    sys.modules[name] = None
from pypeft_fast.cli.main import main
model, adapter, output = sys.argv[1:]
assert main(["--version"]) == 0 and main(["info"]) == 0 and main(["inspect", adapter]) == 0
assert main(["merge", "--model", model, "--adapter", adapter, "--output", output]) == 0
"""
    python("-c", program, tiny_model, tiny_adapter, tmp_path / "merged", expect_success=True)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
