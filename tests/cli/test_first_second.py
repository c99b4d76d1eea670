"""The command before PyTorch is imported, and runs that end early: soon, with one line, without partial files."""

import os
import re
import resource
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.test_bad_input import mistake
from tests.interpreter import python

COMMAND = [sys.executable, "-m", "pypeft_fast"]
IMPORTS = """
import sys
from pypeft_fast.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
heavy = {"torch", "transformers", "peft", "numpy", "pandas", "huggingface_hub", "matplotlib"} & set(sys.modules)
print(code, *sorted(heavy))
"""


def light(*arguments):
    """Runs the command; returns (its exit code and the heavy modules that it imported, all output)."""
    done = python("-c", IMPORTS, *arguments, expect_success=True)
    return done.stdout.splitlines()[-1], done.stdout + done.stderr


def test_nothing_heavy_is_imported_before_the_arguments_are_right(tiny_model, dialogues, tmp_path):
    wrong = {
        ("--help",): ("0", "COMMAND"),
        ("finetune", "--help"): ("0", "--eval-data"),
        ("--version",): ("0", "pypeft-fast "),
        ("finetune", "--model", tiny_model, "--data", "none.jsonl", "--output", "x"): ("2", "no such file"),
        ("finetune", "--model", "none", "--data", dialogues, "--output", "x"): ("2", "no such folder"),
        ("finetune", "--model", tiny_model, "--data", dialogues, "--output", dialogues): ("2", "cannot be written"),
        ("finetune", "--model", tiny_model, "--data", dialogues, "--output", tmp_path, "--rank", "0"): ("2", "--rank"),
        ("chat", "--model", "none"): ("2", "no such folder"),
        ("chat", "--model", tiny_model, "--adapter", "none"): ("2", "no such folder"),
        ("evaluate", "--model", tiny_model, "--data", "none.jsonl"): ("2", "no such file"),
        ("merge", "--model", tiny_model, "--adapter", "none", "--output", "x"): ("2", "no such folder"),
        ("inspect", "none"): ("2", "no such folder"),
        ("plan", "--model", "none"): ("2", "no such folder"),
        ("plan", "--model", tiny_model, "--gpu", "24 bananas"): ("2", "a size is a number with a unit"),
    }
    for arguments, (code, says) in wrong.items():
        last, text = light(*arguments)
        assert last == code and says in text, (arguments, text)


def test_help_takes_little_cpu_time():
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([*COMMAND, "finetune", "--help"], stdout=subprocess.DEVNULL, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 0.7  # importing PyTorch alone takes 1.6


def test_an_unknown_option_is_guessed(command):
    for given, meant in {
        "--lora-r": "--rank", "--lr": "--learning-rate", "--learning-rat": "--learning-rate",
        "--num_train_epochs": "--epochs", "--per-device-train-batch-size": "--batch-size", "--lora_alpha": "--alpha",
    }.items():  # fmt: skip
        result = command("finetune", "--model", "x", "--data", "y", "--output", "z", given, "8")
        mistake(result, f"pypeft-fast finetune: unrecognized arguments: {given} 8; did you mean {meant}?")
    mistake(command("chat", "--model", "x", "--nothing-like-it"), "unrecognized arguments: --nothing-like-it (try")


@pytest.mark.parametrize("command", ["finetune", "chat", "info"])
def test_an_unknown_forced_kernel_is_a_mistake(command, tiny_model, dialogues, tmp_path):
    options = {"finetune": ["--data", dialogues, "--output", tmp_path / "a"], "chat": ["--prompt", "hi"], "info": []}
    model = [] if command == "info" else ["--model", tiny_model]
    done = subprocess.run(
        [*COMMAND, command, *model, *options[command]],
        env={**os.environ, "PYPEFT_FAST_KERNEL": "nope"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    mistake(
        (done.returncode, done.stdout, done.stderr),
        "PYPEFT_FAST_KERNEL=nope",
        "cuda, triton, triton+blas, cpu, blas, reference",
    )


def test_a_disk_that_is_full_leaves_no_half_checkpoint(tiny_model, dialogues, tmp_path):
    """RLIMIT_FSIZE limits files to the size of the adapter, so that the state of the optimizer cannot be written."""
    output = tmp_path / "a"
    options = ["--data", dialogues, "--output", output, "--max-steps", 4, "--eval-every", 2]
    done = subprocess.run(
        [*COMMAND, "finetune", "--model", tiny_model, *map(str, options)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert f"{output}/checkpoint-2 cannot be written" in done.stderr.splitlines()[-1]
    assert [path.name for path in output.iterdir()] == ["finetune.json"]


def _hears_ctrl_c():
    """Enables SIGINT in the process to interrupt, because the tests may be a background job that ignores SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(arguments, when, **environment):
    """Interrupts the command when its output matches `when`; returns (seconds until its end, exit code, output)."""
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | environment,
        preexec_fn=_hears_ctrl_c,
    )
    seen = b""
    while not re.search(when.encode(), seen):
        part = os.read(process.stdout.fileno(), 4096)
        assert part, seen
        seen += part
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    return time.monotonic() - start, process.returncode, (seen + rest).decode()


def test_ctrl_c_ends_a_run_soon(tiny_model, dialogues, tmp_path):
    """The run ends within half a second on an idle machine; the limit allows for a busy one."""
    output = tmp_path / "a"
    options = ["--output", output, "--max-steps", 100000, "--eval-every", 5, "--batch-size", 2]
    run = ["finetune", "--model", tiny_model, "--data", dialogues, *options]
    seconds, code, said = interrupted(run, r"step 10: ")
    assert code == 130 and seconds < 10 and "Traceback" not in said
    assert "with --resume" in said and said.rstrip().endswith("pypeft-fast finetune: interrupted")


@pytest.mark.parametrize("module", ["torch", "torch.storage", "torch.fx", "torch.distributed", "torch.export"])
def test_ctrl_c_while_pytorch_is_imported(module):
    """During any import: some imports of PyTorch swallow every exception, and one aborts the process."""
    starts = f"""
import importlib.abc, os, signal, sys
from pypeft_fast.cli.main import main_and_exit

class CtrlC(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                pass  # as PyTorch's imports do

sys.argv = ["pypeft-fast", "info"]
sys.meta_path.insert(0, CtrlC())
main_and_exit()
"""
    done = subprocess.run(
        [sys.executable, "-c", starts], preexec_fn=_hears_ctrl_c, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\npypeft-fast: interrupted\n")


def test_the_libraries_announcements_to_each_other_are_not_shown(tiny_model, dialogues, tmp_path):
    options = ["--data", dialogues, "--output", tmp_path / "a", "--max-steps", 2]
    run = [*COMMAND, "finetune", "--model", tiny_model, *map(str, options)]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "Warning" not in done.stdout + done.stderr, done.stderr
    assert not list((tmp_path / "a").glob("checkpoint-*")), "the adapter is beside them"


def test_threads(command, tiny_model, monkeypatch):
    import torch

    before = torch.get_num_threads()
    try:
        code, _, err = command("chat", "--model", tiny_model, "--prompt", "hi", "--max-new-tokens", 1, "--threads", 2)
        assert code == 0 and torch.get_num_threads() == 2, err
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    mistake(command("chat", "--model", tiny_model, "--threads", 0), "--threads")
