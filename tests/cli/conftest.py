"""The command in this process, and the tiny Llama, its tokenizer and the dialogues of the library's tests."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.finetune.conftest import dialogues, tiny_adapter, tiny_model, tokenizer  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


def besides(common, options):
    """The options in `common`, each with its value, but those that `options` gives again; then `options`."""
    pairs = zip(common[::2], common[1::2], strict=True)
    return [*(part for pair in pairs if pair[0] not in options for part in pair), *options]


@pytest.fixture
def command(capfd):
    """command("chat", "--model", ...) -> (exit code, what it printed, its stderr)."""
    from pypeft_fast.cli.main import main

    def run(*arguments):
        capfd.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as end:  # argparse ends the process itself
            code = end.code
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """finetune writes no report.html unless --report is given: the answers in it take longer than most of the runs."""
    monkeypatch.setattr("pypeft_fast.cli.finetune_arguments.REPORT", False)


@pytest.fixture
def serving(request):
    """serving(options..., model=...) -> (process, URL) of a new process; it ends with the test."""
    processes = []

    def start(*options, model=None, **environment):
        model = request.getfixturevalue("tiny_model") if model is None else model
        process = subprocess.Popen(
            [sys.executable, "-m", "pypeft_fast", "serve", "--model", str(model), "--port", "0", *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
            # A shell's background job ignores SIGINT, and so would its processes.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        processes.append(process)
        said = ""
        for line in process.stdout:
            said += line
            if found := re.search(r"(http://\S+)/v1 serves", line):
                return process, found[1]
        raise AssertionError(said)

    yield start
    for process in processes:
        process.kill()
        process.wait()
