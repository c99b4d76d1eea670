"""Messages of the library name arguments, and messages of the command name options."""

import argparse
import ast
import inspect
import re
from pathlib import Path

import pytest

import pypeft_fast.finetune
from pypeft_fast.cli.main import make_parser
from pypeft_fast.cli.option_names import as_options
from tests.cli.test_bad_input import mistake

LIBRARY = Path(pypeft_fast.finetune.__file__).parent
# {file: options in shell commands that its messages may name}: of this command in a README.md and in a page that
# `advise` writes, of pip and of hf.
SHELL = {
    "advise/lines.py": {"--"},
    "advise/rule.py": {"--eval-data", "--gradient-checkpointing", "--try"},
    "report/card.py": {"--", "--model", "--output"},
    "base_models.py": {"--no-deps"},
    "hub.py": {"--local-dir", "--repo-type"},
}


def texts(path):
    """The strings of a module that are no docstrings, including the constant parts of f-strings."""
    tree = ast.parse(path.read_text())
    owners = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docs = {inspect.cleandoc(ast.get_docstring(node) or "") for node in owners}
    found = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in found if inspect.cleandoc(text) not in docs]


def test_no_message_of_the_library_names_an_option():
    named = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        if found := {name for text in texts(path) for name in re.findall(r"(?<![\w-])--(?:[a-z][a-z-]*|$)", text)}:
            named[str(path.relative_to(LIBRARY))] = found
    assert named == SHELL


def test_what_a_message_names_in_backticks_is_an_option():
    """The command replaces such a name by the option. The subcommands in `lines` have all of these options."""
    lines = ["finetune --model m --data d --output o", "plan --model m", "advise --model m --data d"]
    lines.append("adapters merge a b --weights 1 1 --output o")
    options = {name for line in lines for name in vars(make_parser().parse_args(line.split()))}
    named = {name for path in LIBRARY.rglob("*.py") for text in texts(path) for name in re.findall("`([a-z_]+)`", text)}
    assert {"model", "max_length", "learning_rate", "overwrite"} <= named <= options


def test_only_the_options_of_the_subcommand():
    arguments = argparse.Namespace(max_length=3, data="d")
    text = "`max_length` 3 of `data` d; `dtype`, `MAX_LENGTH`, `max_length and data`"
    assert as_options(text, arguments) == "--max-length 3 of --data d; `dtype`, `MAX_LENGTH`, `max_length and data`"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--eval-data", "chatterbot:gardening"], "--eval-data chatterbot:gardening: no such topic"),
        (["--eval-data", "nope.jsonl"], "--eval-data nope.jsonl: no such file"),
        (["--rank", "3", "--method", "ia3"], "--rank does not go with --method ia3; it is for lora, dora"),
        (["--method", "prefix", "--gradient-checkpointing"], "--gradient-checkpointing does not go with --method pre"),
        (["--target-modules", "q_prj"], "--target-modules: no layer of this model is called 'q_prj'"),
        (["--max-length", "3"], "--max-length 3 leaves no token of an answer in any training example"),
    ],
)
def test_what_the_command_says(command, tiny_model, dialogues, tmp_path, options, says):
    common = ["--model", tiny_model, "--data", dialogues, "--output", tmp_path / "a"]
    mistake(command("finetune", *common, *options), says)


def test_advice_names_options_too(command, tiny_model, dialogues, tmp_path):
    common = ["--model", tiny_model, "--data", dialogues, "--output", tmp_path / "a", "--max-steps", 1]
    code, out, err = command("finetune", *common, "--learning-rate", 0.5)
    assert code == 0, err
    assert "for more give --epochs or --max-steps" in out and "--eval-fraction or --eval-data" in out
    assert "warning: a --learning-rate of 0.5 is outside 1e-06 to 0.1, where adapters learn; usual for lora is 0" in out
    assert "`" not in out + err


def test_an_option_of_several_subcommands_is_declared_once():
    declared, again = set(), []
    for path in sorted((LIBRARY.parent / "cli").glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        helps = {call: {its.arg: ast.unparse(its.value) for its in call.keywords}.get("help") for call in calls}
        here = [(ast.unparse(call.args[0]), said) for call, said in helps.items() if said is not None and call.args]
        again += [(path.name, *its) for its in here if its in declared or here.count(its) > 1]
        declared |= set(here)
    assert not again and any("--eval-data" in name for name, _ in declared)
