"""Every command in the documents runs here, or is in the tables of tested_elsewhere.py, and its options exist."""

import ast
import importlib.util
import io
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from pypeft_fast.cli.main import make_parser
from tests.docs.blocks import PAGES, ROOT, blocks_of, commands_in, inline_code, shell_commands
from tests.docs.tested_elsewhere import CANNOT, TESTED

ALL = {page: shell_commands(page) for page in PAGES}
HERE = {page: [line for line in lines if line not in TESTED | CANNOT] for page, lines in ALL.items()}
# Options in the text of the documents that are of other programs: pip, llama.cpp, python -m bench.X.
OF_OTHERS = {"--extra-index-url", "--only", "--lora", "--reuse", "--show", "--results", "--list", "--again"}
OF_OTHERS |= {"--adapters", "--compiled", "--shape"}
# {page: files of records that its commands read}, and {page: folders of adapters that they read}.
FILES = {
    "README.md": ["FILE.jsonl", "A.jsonl", "B.jsonl"],
    "docs/command.md": ["desk.jsonl", "billing.jsonl", "requests.jsonl"],
    "docs/start-own-data.md": ["shop.jsonl", "questions.jsonl"],
    "docs/target-modules.md": ["train.jsonl", "held-out.jsonl"],
}
ADAPTERS = {"docs/command.md": ["out/first", "out/second"]}


def test_commands_are_found():
    assert commands_in("a b  # c\n\nmake x   # y\ncurl u \\\n  -d '#1'\n# only this\n") == [
        "a b",
        "make x",
        "curl u -d '#1'",
    ]
    assert (
        "pypeft-fast evaluate --model smollm2 --adapter out/faq --data FILE.jsonl" in HERE["README.md"]
        and len(sum(ALL.values(), [])) > 60
    )


def test_the_tables_have_no_command_that_the_documents_lack():
    assert [line for line in (*TESTED, *CANNOT) if not any(line in lines for lines in ALL.values())] == []
    assert TESTED.keys() & CANNOT.keys() == set()


@pytest.mark.parametrize("node", sorted(set(TESTED.values())))
def test_the_test_that_runs_a_command_exists(node):
    path, _, name = node.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert name in {its.name for its in tree.body if isinstance(its, ast.FunctionDef)}


def parsed(line):
    try:
        make_parser().parse_args(shlex.split(line)[1:])
    except SystemExit as end:
        return end.code == 0
    return True


def test_a_line_with_an_unknown_option_cannot_be_parsed(capsys):
    assert parsed("pypeft-fast plan --model m --no-probe")
    assert not parsed("pypeft-fast plan --model m --no-prob") and not parsed("pypeft-fast plam --model m")


def write_config(page, folder):
    """Writes the YAML of a page to run.yaml, the config file that its commands read."""
    for block in blocks_of(page):
        if block.language == "yaml":
            (folder / "run.yaml").write_text(block.text + "\n")


@pytest.mark.parametrize("page", PAGES)
def test_every_line_of_the_command_can_be_parsed(page, tmp_path, monkeypatch):
    write_config(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    wrong = [line for line in ALL[page] if line.startswith("pypeft-fast ") and not parsed(line)]
    assert wrong == []


def all_options():
    found, parsers = set(), [make_parser()]
    while parsers:
        for action in parsers.pop()._actions:
            found.update(action.option_strings)
            parsers += getattr(action, "choices", None).values() if isinstance(action.choices, dict) else []
    return found


@pytest.mark.parametrize("page", PAGES)
def test_options_and_subcommands_in_the_text_exist(page):
    """In code such as `--rank`, `pypeft-fast finetune --quantize nf4`; not in that of other programs."""
    known, commands = all_options() | OF_OTHERS, make_parser()._subparsers._group_actions[0].choices
    for code in inline_code(page):
        if code.startswith("pypeft-fast "):
            assert code.split()[1] in commands, code
        if re.match(r"pypeft-fast |--\w", code):
            assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", code)) <= known, code


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_and_modules_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    declared = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
    for line in ALL[page] + inline_code(page):
        if line.startswith("make "):
            named = {word for word in line.split()[1:] if "=" not in word and re.fullmatch("[a-z-]+", word)}
            assert named <= targets | set(declared), line
        for module in re.findall(r"python3? -m (bench[.\w]*|tests[.\w]*)", line):
            assert importlib.util.find_spec(module), line


def write_records(path, count=12):
    records = ({"prompt": f"what is {i}", "completion": f"it is {i}", "product": "ab"[i % 2]} for i in range(count))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.parametrize("page", [page for page in PAGES if HERE[page]])
def test_the_commands_of_a_page_run_one_after_the_other(
    command, page, smollm2_is_tiny, tiny_adapter, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    (work / "examples").mkdir(parents=True)
    for name in ["examples/faq.jsonl", *FILES.get(page, [])]:
        write_records(work / name)
    write_config(page, work)
    for name in ADAPTERS.get(page, []):
        shutil.copytree(tiny_adapter, work / name)
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # a conversation ends at once
    for line in HERE[page]:
        words = shlex.split(line)
        if words[0] == "python" and words[1] == "-c":
            exec(words[2], {})
            continue
        assert words[0] == "pypeft-fast", f"{page}: {line}: run it here, or name its test in tested_elsewhere.py"
        code, out, err = command(*words[1:])
        assert code == 0, f"{line}\n{err}"
        for folder in (words[at + 1] for at, word in enumerate(words) if word == "--output"):
            assert Path(folder).exists(), line
