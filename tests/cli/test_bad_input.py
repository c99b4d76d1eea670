"""Mistakes of users: one line on stderr that names the mistake, exit code 2, and nothing is written."""

import json
import shutil
from pathlib import Path

import pytest

from pypeft_fast.cli.main import make_parser


def mistake(result, *says):
    code, out, err = result
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("pypeft-fast") and "Traceback" not in err
    for text in says:
        assert text in err, err


@pytest.fixture
def finetune(command, tiny_model, dialogues, tmp_path):
    def run(*options, model=tiny_model, data=dialogues, output=None):
        output = output or tmp_path / "adapter"
        return command("finetune", "--model", model, "--data", data, "--output", output, "--max-steps", 1, *options)

    return run


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("evaluate --model m --data a --data b", "argument --data: given twice, as a and as b; give it once"),
        ("finetune --model m --eval-every 1 --save-every=2", "--eval-every/--save-every: given twice, as 1 and as 2"),
        ("adapters merge a b --output o --weights 1 2 --weights 1 3", "as 1.0 2.0 and as 1.0 3.0"),
        ("serve --model m --port 1 --port 2", "argument --port: given twice"),
    ],
)
def test_an_option_of_one_value_that_has_two(command, line, says):
    mistake(command(*line.split()), says)


def test_an_option_may_have_one_value_twice_and_another_parser_another_value():
    for model in ("m", "n"):
        parsed = make_parser().parse_args(["chat", "--model", model, "--top-p", "0.5", "--top-p", ".5"])
        assert (parsed.model, parsed.top_p) == (model, 0.5)


def test_no_command_or_a_wrong_one(command):
    mistake(command(), "COMMAND", "--help")
    mistake(command("train"), "train")
    mistake(command("finetune", "--model", "x"), "--data", "--output")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--dropout", "1.5", "argument --dropout: 1.5 is not in [0, 1)"),
        ("--dropout", "1", "1 is not in [0, 1)"),
        ("--dropout", "-0.1", "-0.1 is not in [0, 1)"),
        ("--dropout", "nan", "nan is not in [0, 1)"),
        ("--rank", "0", "0 is not a whole number above 0 (try"),
        ("--rank", "4.5", "4.5 is not a whole number above 0"),
        ("--learning-rate", "inf", "inf is not a number above 0"),
        (
            "--learning-rate",
            "1e6",
            "1e+06 is outside what is accepted, above 0 and at most 1; usual for lora is 0.0005",
        ),
        ("--eval-fraction", "1", "1 is not in [0, 1)"),
        ("--epochs", "1e308", "1e308 is more than 1000000000000000"),
        ("--threads", "100000", "100000 is not a whole number from 1 to 1024"),
        ("--eval-data", "", "argument --eval-data: '' is empty; give a value"),
        ("--chat-template", " ", "argument --chat-template: ' ' is empty; give a value"),
        ("--method", "magic", "'magic'"),
        ("--dtype", "float8", "'float8'"),
    ],
)
def test_values_out_of_range(finetune, tmp_path, option, value, says):
    mistake(finetune(option, value), option, says)
    assert not (tmp_path / "adapter").exists()


def test_data(finetune, tmp_path):
    path = tmp_path / "d.jsonl"
    mistake(finetune(data=path), str(path), "no such file")
    path.write_text('{"prompt": "a", "completion": "b"}\n{oops\n')
    mistake(finetune(data=path), f"{path}:2: not JSON")
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt":\n')
    mistake(finetune(data=path), f"{path}:2: not JSON: Expecting value at column 11")
    path.write_text("[" * 100_000 + "\n")
    mistake(finetune(data=path), f"{path}:1: nested too deeply")
    path.write_text("")
    mistake(finetune(data=path), str(path), "no examples")
    mistake(finetune(data="chatterbot:gardening"), "chatterbot:gardening", "no such topic", "tech_support")
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    mistake(finetune(data=path), "--eval-fraction 0")
    mistake(finetune("--max-length", 3), "--max-length 3 leaves no token of an answer in any training example")


def test_models(finetune, tmp_path, tiny_model):
    mistake(finetune(model=tmp_path / "none"), "--model", "no such folder")
    mistake(finetune(model=tmp_path), "no config.json")
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:-100])
    mistake(finetune(model=broken), "broken cannot be loaded")


def test_a_tokenizer_of_another_model(finetune, command, tmp_path, tiny_model):
    from transformers import AutoModelForCausalLM

    other = shutil.copytree(tiny_model, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.resize_token_embeddings(50, mean_resizing=False)
    model.save_pretrained(other)
    says = "but the model's vocabulary has 50; they do not belong together"
    code, _, err = finetune(model=other)
    assert code == 2 and says in err and "Traceback" not in err
    mistake(command("chat", "--model", other, "--prompt", "hello"), says)


def test_a_rank_that_no_memory_holds(finetune):
    code, _, err = finetune("--rank", 10**12)
    assert code == 2 and err.count("\n") == 1 and "is more than the widest layer of this model has" in err


def test_targets_that_match_nothing_list_what_there_is(finetune):
    code, _, err = finetune("--target-modules", "query")
    assert code == 2 and err.startswith("pypeft-fast finetune: --target-modules: no layer of this model is called ")
    assert "'query'" in err and "q_proj" in err and "Traceback" not in err


def test_one_wrong_target_among_right_ones(finetune, tmp_path):
    mistake_after_loading = finetune("--target-modules", "q_prj,v_proj")
    assert mistake_after_loading[0] == 2
    assert "no layer of this model is called 'q_prj'; did you mean q_proj? There are " in mistake_after_loading[2]
    assert not (tmp_path / "adapter").exists()
    (tmp_path / "adapter").mkdir()  # a folder that was there stays
    assert finetune("--target-modules", "q_prj")[0] == 2 and (tmp_path / "adapter").is_dir()
    code, _, err = finetune("--target-modules", "q_proj,zzz")
    assert code == 2 and "'zzz'; there are down_proj, " in err


def test_output_and_resume(finetune, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    mistake(finetune(output=file), f"--output {file} cannot be written")
    mistake(finetune("--resume"), "no complete checkpoint")
    mistake(finetune("--resume", "--overwrite"), "not allowed with")


def test_adapters_of_several_kinds_answer_apart(command, tiny_model, tiny_adapter, tmp_path):
    other = shutil.copytree(tiny_adapter, tmp_path / "other")
    (other / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    result = command("chat", "--model", tiny_model, "--adapter", tiny_adapter, "--adapter", other, "--prompt", "hi")
    mistake(result, f"--adapter {other} is of IA3 and --adapter {tiny_adapter} of LORA", "once for each kind")


def test_adapters(command, tiny_model, dialogues, tmp_path):
    def chat(*options):
        return command("chat", "--model", tiny_model, "--prompt", "hello", *options)

    adapter = tmp_path / "adapter"
    common = ["--model", tiny_model, "--data", dialogues, "--output", adapter, "--max-steps", 1, "--save-every", 0]
    assert command("finetune", *common)[0] == 0
    mistake(chat("--adapter", tmp_path / "none"), f"--adapter {tmp_path / 'none'}: no such folder\n")
    mistake(chat("--adapter", f"a={tmp_path / 'none'}"), f"no such folder: {tmp_path / 'none'}\n")
    mistake(chat("--adapter", adapter, "--adapter", adapter), "'adapter' is taken already", "NAME=")
    mistake(chat("--adapter", f"a.b={adapter}"), "'a.b' cannot name an adapter")
    mistake(chat("--temperature", "-1"), "--temperature")
    for name in ("keys", "v1.0", "lr=0.1", "__base__"):
        folder = shutil.copytree(adapter, tmp_path / name)
        mistake(chat("--adapter", folder), f"{name!r} cannot name an adapter", f"--adapter NAME={folder}")
        code, out, _ = chat("--adapter", f"mine={folder}", "--adapter", adapter)
        assert code == 0 and "[mine]" in out
    folder = shutil.copytree(adapter, tmp_path / "lr=1")
    code, out, _ = chat("--adapter", folder, "--adapter", adapter)
    assert code == 0 and "[lr=1]" in out

    def broken(name, change):
        folder = shutil.copytree(adapter, tmp_path / name)
        change(folder)
        return chat("--adapter", folder)

    def truncate(folder):
        weights = folder / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-50])

    def edit(**fields):
        def change(folder):
            config = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps(config | fields))

        return change

    mistake(broken("truncated", truncate), "truncated cannot be loaded", "adapter_model.safetensors")
    mistake(broken("no-config", lambda f: (f / "adapter_config.json").unlink()), "adapter_config.json")
    mistake(broken("no-weights", lambda f: (f / "adapter_model.safetensors").unlink()), "adapter_model.safetensors")
    mistake(broken("not-json", lambda f: (f / "adapter_config.json").write_text("{")), "adapter_config.json")
    mistake(broken("kind", edit(peft_type="MAGIC")), "MAGIC")
    mistake(broken("field", edit(magic=3)), "magic")
    mistake(broken("rank", edit(r=5)), "cannot be loaded", "lora_")


@pytest.mark.parametrize(
    ("method", "option", "says"),
    [
        ("ia3", ["--rank", 4], "--rank does not go with --method ia3; it is for lora, dora"),
        ("prompt", ["--dropout", 0.1], "--dropout does not go with --method prompt; it is for lora, dora, bottleneck"),
        ("lora", ["--virtual-tokens", 4], "--virtual-tokens does not go with --method lora; it is for prompt, prefix"),
        ("prefix", ["--gradient-checkpointing"], "--gradient-checkpointing does not go with --method prefix"),
    ],
)
def test_options_of_another_method(finetune, method, option, says):
    mistake(finetune("--method", method, *option), says)


LONG = "x" * 5000


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "--model", LONG],
        ["inspect", LONG],
        ["adapters", "list", LONG],
        ["advise", "--model", "m", "--data", "d", "--html", LONG],
        ["finetune", "--config", f"{LONG}.yaml"],
    ],
)
def test_a_name_that_is_too_long_for_a_file(command, words, monkeypatch):
    for module in ("advise", "plan"):
        monkeypatch.setattr(f"pypeft_fast.cli.{module}.check_base", lambda name: Path(name).is_dir())
    mistake(command(*words), "File name too long")


@pytest.mark.parametrize("words", [["plan", "--model"], ["inspect"], ["adapters", "diff", "a"], ["adapters", "list"]])
def test_an_empty_name(command, words):
    mistake(command(*words, ""), "'' is empty; give a value")
