"""The command in this process, and the tiny Llama, its tokenizer and the dialogues of the library's tests."""

import pytest

from tests.finetune.conftest import dialogues, tiny_adapter, tiny_model, tokenizer  # noqa: F401


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
