"""`pypeft-fast finetune --data NAME=FILE ..`: several adapters in one run, their folders, and what is refused."""

import json

import pytest
import torch

from tests.cli.test_bad_input import mistake
from tests.cli.test_quantize import base  # noqa: F401
from tests.interpreter import python


@pytest.fixture(scope="module")
def files(dialogues, tmp_path_factory):
    """{"desk", "billing"}: files of 20 and of 8 dialogues."""
    lines, folder = dialogues.read_text().splitlines(keepends=True), tmp_path_factory.mktemp("files")
    for name, count in (("desk", 20), ("billing", 8)):
        (folder / f"{name}.jsonl").write_text("".join(lines[:count]))
    return {name: folder / f"{name}.jsonl" for name in ("desk", "billing")}


@pytest.fixture
def finetune(command, tiny_model, files):
    def run(output, *options, model=tiny_model, names=("desk", "billing")):
        data = [part for name in names for part in ("--data", f"{name}={files[name]}")]
        common = ["--model", model, "--output", output, "--epochs", 2, "--rank", 4, "--learning-rate", 0.05]
        return command("finetune", *common, *data, "--eval-fraction", 0.2, *options)

    return run


def metrics_in(folder):
    return json.loads((folder / "metrics.json").read_text())


def loss_in_peft(folder, model, tokenizer):
    """The mean held-out loss over the tokens, of the files in PEFT itself."""
    import peft
    from transformers import AutoModelForCausalLM

    from pypeft_fast.finetune.data.load import load_data
    from pypeft_fast.finetune.training.prepare import prepare
    from pypeft_fast.finetune.training.settings import Settings

    settings = Settings(**metrics_in(folder)["settings"])
    adapted = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), folder).eval()
    nats = []
    with torch.no_grad():
        for encoded in prepare(tokenizer, load_data(settings.data), settings).held_out:
            logits = adapted(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
            nats += [-float(logits[i - 1, t]) for i, t in enumerate(encoded.labels) if i and t != -100]
    return sum(nats) / len(nats)


def test_from_data_to_answers(finetune, command, tiny_model, files, tokenizer, tmp_path):
    output = tmp_path / "lines"
    code, out, err = finetune(output, "--batch-size", 3)
    assert code == 0, err
    assert "desk: 16 examples to train on, 4 held out; 12 steps of 3 examples" in out
    assert "billing: 6 examples to train on, 2 held out; 4 steps of 3 examples" in out
    assert "a batch holds 3 examples of each of 2 adapters: 6 rows" in out
    assert sorted(path.name for path in output.iterdir()) == ["billing", "desk", "finetune.json", "loss.png"]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    settings = json.loads((output / "finetune.json").read_text())["adapters"]
    for name, steps in (("desk", 12), ("billing", 4)):
        there = {path.name for path in (output / name).iterdir()}
        files_of_one = {"adapter_config.json", "adapter_model.safetensors", "README.md", "metrics.json"}
        assert there == files_of_one | {"finetune.json"}
        metrics = metrics_in(output / name)
        assert metrics["steps"] == steps and metrics["settings"] == settings[name]
        assert metrics["settings"]["data"] == str(files[name])
        assert metrics["eval_loss_after"] < metrics["eval_loss_before"] - 0.05
        assert f"{name}: loss on held-out data: {metrics['eval_loss_before']:.3f} before" in out
        assert loss_in_peft(output / name, tiny_model, tokenizer) == pytest.approx(metrics["eval_loss_after"], abs=1e-4)
        assert f"# {name}\n" in (output / name / "README.md").read_text()

    adapters = ["--adapter", output / "desk", "--adapter", output / "billing"]
    code, out, err = command("chat", "--model", tiny_model, *adapters, "--prompt", "hi", "--max-new-tokens", 3)
    assert code == 0, err
    code, out, err = command("evaluate", "--model", tiny_model, *adapters, "--data", files["desk"], "--json")
    assert code == 0 and len(set(json.loads(out)["losses"].values())) == 3, err
    assert command("inspect", output / "billing")[0] == 0


def test_the_command_in_the_card_makes_the_same_adapter(finetune, command, tmp_path):
    import shlex

    assert finetune(tmp_path / "lines", "--dropout", 0)[0] == 0
    card = (tmp_path / "lines" / "billing" / "README.md").read_text()
    words = shlex.split(card.split("```\npypeft-fast ")[1].split("\n```")[0])
    assert words[-2:] == ["--output", "billing"]
    code, _, err = command(*words[:-1], tmp_path / "alone")
    assert code == 0, err
    ours, theirs = metrics_in(tmp_path / "lines" / "billing"), metrics_in(tmp_path / "alone")
    assert ours["settings"]["dropout"] == 0
    assert ours["settings"] == theirs["settings"]
    for key in ("train_loss_last", "eval_loss_before", "eval_loss_after"):
        assert ours[key] == pytest.approx(theirs[key], abs=1e-3)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_over_a_quantised_base(finetune, command, base, files, tmp_path, quantize):  # noqa: F811
    code, out, err = finetune(tmp_path / "a", "--quantize", quantize, model=base)
    assert code == 0, err
    assert f"--quantize {quantize} --adapter" in out
    for name in files:
        metrics = metrics_in(tmp_path / "a" / name)
        assert metrics["settings"]["quantize"] == quantize
        assert metrics["eval_loss_after"] < metrics["eval_loss_before"] - 0.05
    arguments = ["--model", base, "--quantize", quantize, "--adapter", tmp_path / "a" / "desk", "--prompt", "hi"]
    assert command("chat", *arguments, "--max-new-tokens", 2)[0] == 0


def test_examples_of_their_own_to_hold_out(finetune, files, tmp_path):
    code, out, err = finetune(tmp_path / "a", "--eval-data", f"billing={files['desk']}", "--max-steps", 1)
    assert code == 0, err
    assert "billing: 8 examples to train on, 20 held out" in out and "desk: 16 examples to train on, 4 held out" in out
    assert "billing: warning: the questions of 8 of 20 examples of --eval-data are in --data too" in out


def test_all_go_on_from_one_adapter(finetune, tiny_adapter, tmp_path, command, tiny_model, files):
    data = [part for name in files for part in ("--data", f"{name}={files[name]}")]
    common = ["--model", tiny_model, "--adapter", tiny_adapter, "--max-steps", 2, "--output", tmp_path / "a", *data]
    code, _, err = command("finetune", *common)
    assert code == 0, err
    for name in files:
        assert json.loads((tmp_path / "a" / name / "adapter_config.json").read_text())["r"] == 3


def test_nothing_is_overwritten_unasked(finetune, tmp_path, command, tiny_model, files):
    output, quick = tmp_path / "a", ("--max-steps", 1, "--save-every", 0)
    assert finetune(output, *quick, names=["desk"])[0] == 0  # one that has a name has a folder too
    assert (output / "desk" / "metrics.json").exists()
    before = (output / "desk" / "adapter_model.safetensors").read_bytes()
    mistake(finetune(output, *quick), "already holds loss.png")
    (output / "loss.png").unlink()
    mistake(finetune(output, *quick), f"{output / 'desk'} already holds")
    assert (output / "desk" / "adapter_model.safetensors").read_bytes() == before
    code, _, err = finetune(output, *quick, "--seed", 1, "--overwrite")
    assert code == 0, err
    assert (output / "desk" / "adapter_model.safetensors").read_bytes() != before
    mistake(finetune(output / "desk", *quick, "--overwrite"), "of a run of one adapter")


def test_an_interruption(finetune, tmp_path, monkeypatch):
    from pypeft_fast.finetune.training import train_many

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_many, "backward", interrupted)
    code, _, err = finetune(tmp_path / "a")
    assert code == 130 and "Traceback" not in err and "--resume" not in err
    assert not list(tmp_path.rglob("metrics.json")) and not list(tmp_path.rglob(".finetune.lock"))


NAMES = ["../up", "a/b", "checkpoint-7", "..", ".", "", "__base__", "a b", "a.b", "-x", "x" * 101, "\x1b[31m"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_no_folder_may_have(command, tiny_model, files, tmp_path, name):
    data = [f"--data=good={files['desk']}", f"--data={name}={files['billing']}"]
    result = command("finetune", "--model", tiny_model, "--output", tmp_path / "a", *data)
    mistake(result, "cannot name an adapter and its folder; give a name of letters")
    assert "--data" in result[2] and not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--data", "desk=chatterbot:food"], "--data desk=chatterbot:food: the name 'desk' is taken by"),
        (["--data", "chatterbot:food"], "--data chatterbot:food has no name, and --data is given 3 times"),
        (["--data", "third="], "--data third= names no data; give third=FILE"),
        (["--data", "third=nope.jsonl"], "--data nope.jsonl: no such file"),
        (["--data", "keys=chatterbot:food"], "'keys' cannot name an adapter"),
        (["--resume"], "--resume: no complete checkpoint in"),
        (["--by-product"], "--by-product does not go with --data NAME=FILE; give one --data FILE"),
        (["--product", "desk"], "--product does not go with --data NAME=FILE; give one --data FILE"),
        (["--method", "dora"], "--method dora trains one adapter in a run"),
        (["--method", "prompt"], "one of the methods lora, ia3, bitfit, bottleneck"),
        (["--eval-data", "chatterbot:food"], "--eval-data chatterbot:food has no name: give NAME=chatterbot:food"),
        (["--eval-data", "third=chatterbot:food"], "no --data has the name third; there are: desk, billing"),
        (["--max-length", "3"], "desk: --max-length 3 leaves no token of an answer in any training example"),
    ],
)
def test_what_is_refused(command, tiny_model, files, tmp_path, options, says):
    data = ["--data", f"desk={files['desk']}", "--data", f"billing={files['billing']}"]
    given = ["--rank", 4] if "--method" not in options else []
    common = ["--model", tiny_model, "--output", tmp_path / "a"]
    mistake(command("finetune", *common, *data, *given, *options), says)


KILL = """
import os, signal, sys
from pypeft_fast.cli.main import main
from pypeft_fast.finetune.training import train_many
real, done = train_many.backward, []
def backward(*arguments):
    done.append(1)
    if len(done) > 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
train_many.backward = backward
main(sys.argv[1:])
"""


def test_a_killed_process_is_resumed_to_the_same_adapters(finetune, command, tiny_model, files, tmp_path):
    options = ("--dropout", 0.2, "--save-every", 2)
    assert finetune(tmp_path / "whole", *options)[0] == 0
    data = [f"--data={name}={path}" for name, path in files.items()]
    common = ["--epochs", 2, "--rank", 4, "--learning-rate", 0.05, "--eval-fraction", 0.2]
    output = tmp_path / "killed"
    words = ["finetune", "--model", tiny_model, "--output", output, *data, *common, *options]
    killed = python("-c", KILL, *map(str, words))
    assert killed.returncode == -9 and {p.name for p in output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    mistake(finetune(output, *options), "already holds checkpoint-")
    code, out, err = finetune(output, *options, "--resume")
    assert code == 0 and f"going on from {output / 'checkpoint-4'}" in out, err
    assert not list(output.glob("*checkpoint-*"))
    for name in files:
        (ours, theirs) = (folder / name / "adapter_model.safetensors" for folder in (output, tmp_path / "whole"))
        assert ours.read_bytes() == theirs.read_bytes()
    code, out, _ = finetune(output, *options, "--resume")
    assert code == 0 and "is complete: all of desk, billing" in out
    mistake(finetune(output, *options, "--seed", 1, "--resume"), "--seed of desk was 0 in the run to go on with")


def test_an_interruption_says_how_to_go_on_and_checkpoints_can_stay(finetune, tmp_path, monkeypatch):
    from pypeft_fast.finetune.training import train_many

    real, left = train_many.backward, iter(range(3))

    def interrupted(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(train_many, "backward", interrupted)
        code, _, err = finetune(tmp_path / "a", "--save-every", 2)
    assert code == 130 and "give the same command with --resume" in err
    code, _, err = finetune(tmp_path / "a", "--save-every", 2, "--resume", "--keep-checkpoints")
    assert code == 0 and list((tmp_path / "a").glob("checkpoint-*")), err
    code, _, err = finetune(tmp_path / "a", "--save-every", 0, "--overwrite")
    assert code == 0 and not list((tmp_path / "a").glob("checkpoint-*")), err


def test_names_for_held_out_data_alone(command, tiny_model, files, tmp_path):
    common = ["--model", tiny_model, "--output", tmp_path / "a", "--data", files["desk"]]
    mistake(command("finetune", *common, "--eval-data", f"x={files['billing']}"), "and --data names none: leave x= out")
    mistake(command("finetune", *common, "--data", files["billing"]), "has no name, and --data is given 2 times")


def test_a_file_with_an_equals_sign_has_no_name(command, tiny_model, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.jsonl").write_bytes(files["desk"].read_bytes())
    common = ["--model", tiny_model, "--output", tmp_path / "out", "--max-steps", 1]
    assert command("finetune", *common, "--data", "a=b.jsonl")[0] == 0
    assert (tmp_path / "out" / "adapter_config.json").exists()
