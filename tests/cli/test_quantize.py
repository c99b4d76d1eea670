"""`--quantize`: training over a base model in 4 or 8 bits, the files in its folder, and the other subcommands."""

import json

import pytest
import torch

from pypeft_fast.cli.adapter_option import other_bases
from pypeft_fast.finetune.adapters.methods import METHODS

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """A Llama in which each row of a weight is a whole number of blocks of 64 weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    tokens = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, vocab_size=len(tokenizer))
    config = LlamaConfig(**sizes, **tokens, pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("llama-64")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def finetune(command, base, dialogues):
    def run(output, *options, steps=6):
        common = ["--model", base, "--data", dialogues, "--output", output, "--max-steps", steps]
        return command("finetune", *common, "--eval-fraction", 0.2, *options)

    return run


@pytest.mark.parametrize(
    "method,quantize", [(m, q) for m in METHODS for q in ("nf4", "int8") if (m, q) != ("dora", "int8")]
)
def test_every_method_trains_over_it(finetune, tmp_path, method, quantize):
    output, rate = tmp_path / "a", 0.02 if method in ("lora", "dora") else 0.05
    code, out, err = finetune(output, "--method", method, "--quantize", quantize, "--learning-rate", rate, steps=12)
    assert code == 0, err
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"] - 0.01
    assert metrics["settings"]["quantize"] == quantize
    assert json.loads((output / "finetune.json").read_text())["quantize"] == quantize


@pytest.fixture(scope="module")
def adapters(base, dialogues, tmp_path_factory):
    """{"nf4": folder, "dora": folder} of adapters that the command has trained over nf4."""
    from pypeft_fast.cli.main import main

    folder = tmp_path_factory.mktemp("adapters")
    for name, method in (("nf4", "lora"), ("dora", "dora")):
        options = ["--method", method, "--quantize", "nf4", "--learning-rate", 0.02, "--max-steps", 12]
        common = ["--model", base, "--data", dialogues, "--output", folder / name, "--eval-fraction", 0.2, *options]
        assert main(["finetune", *map(str, common)]) == 0
    return {name: folder / name for name in ("nf4", "dora")}


def test_what_is_written_says_so(command, adapters, base):
    folder = adapters["nf4"]
    card = (folder / "README.md").read_text()
    assert f"for {base} in nf4 (bitsandbytes), trained with pypeft_fast" in card and "--quantize nf4" in card
    code, out, _ = command("inspect", folder)
    assert code == 0 and "trained over     nf4\n" in out


def test_the_card_loads_the_model_that_it_was_trained_over(adapters, monkeypatch):
    monkeypatch.chdir(adapters["nf4"].parent)
    text = (adapters["nf4"] / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names = {}
    exec(text, names)
    config = names["model"].config.quantization_config
    assert (config.quantization_method(), config.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.bnb_4bit_compute_dtype == torch.float32


def test_evaluation_over_the_same_format_gives_the_loss_of_the_training(command, adapters, base, dialogues, tmp_path):
    from pypeft_fast.finetune.data.load import load_data
    from pypeft_fast.finetune.data.split import split

    metrics = json.loads((adapters["nf4"] / "metrics.json").read_text())
    assert metrics["peak_memory_bytes"] > 1e8
    _, held_out = split(load_data(str(dialogues)), 0.2, 0)
    data = tmp_path / "held-out.jsonl"
    data.write_text("".join(json.dumps({"messages": example.messages}) + "\n" for example in held_out))
    common = ["--model", base, "--data", data, "--adapter", adapters["nf4"]]
    code, out, err = command("evaluate", *common, "--quantize", "nf4", "--json")
    assert code == 0 and "note:" not in err, err
    facts = json.loads(out)
    assert facts["losses"]["nf4"] == pytest.approx(metrics["eval_loss_after"], abs=1e-4)
    assert facts["losses"]["base"] == pytest.approx(metrics["eval_loss_before"], abs=1e-4)
    assert facts["quantize"] == "nf4" and facts["peak_memory_bytes"] > 1e8
    code, out, err = command("evaluate", *common)
    assert code == 0 and "was trained over a base model in nf4, and this is a dense base model" in err
    assert "peak memory: " in out


def test_chat_answers_over_it(command, adapters, base):
    options = ["--prompt", "what is it", "--max-new-tokens", 8, "--temperature", 1, "--seed", 3]
    code, out, err = command("chat", "--model", base, "--quantize", "nf4", "--adapter", adapters["nf4"], *options)
    assert code == 0 and out.strip() and "note:" not in err
    code, _, err = command("chat", "--model", base, "--quantize", "int8", "--adapter", adapters["nf4"], *options)
    assert code == 0 and "trained over a base model in nf4, and this is a base model in int8" in err


@pytest.mark.parametrize("record", [None, {}, {"quantize": None}])
def test_a_note_names_an_adapter_that_was_trained_dense(tmp_path, record):
    """A folder without a record of the run, such as one of another program, gets none."""
    if record is not None:
        (tmp_path / "finetune.json").write_text(json.dumps(record))
    assert other_bases({"a": tmp_path}, None) == []
    lines = other_bases({"a": tmp_path}, "nf4")
    assert len(lines) == bool(record)
    assert all("over a dense base model, and this is a base model in nf4" in line for line in lines)
    assert all("without --quantize" in line for line in lines)


def test_a_merge_goes_into_the_dense_weights_and_says_so(command, adapters, base, tmp_path):
    from safetensors.torch import load_file

    common = ["--model", base, "--adapter", adapters["nf4"], "--output", tmp_path / "m"]
    code, out, _ = command("merge", *common)
    assert code == 0 and "trained over a base model in nf4 and is merged into the dense model" in out
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    assert all(t.dtype == torch.float32 for t in load_file(tmp_path / "m" / "model.safetensors").values())
    code, _, err = command("merge", *common, "--quantize", "nf4")
    assert code == 2 and "unrecognized arguments: --quantize nf4" in err


def test_a_run_goes_on_over_the_same_format_alone(finetune, tmp_path):
    def run(name, *options, steps=4):
        common = ("--save-every", 2, "--keep-checkpoints", *options)
        return finetune(tmp_path / name, *common, steps=steps)

    assert run("a", "--quantize", "nf4")[0] == 0
    (tmp_path / "a" / "metrics.json").unlink()
    code, _, err = run("a", "--resume")
    assert code == 2 and "--quantize was 'nf4' in the run to go on with and is not given now" in err
    code, out, err = run("a", "--resume", "--quantize", "nf4")
    assert code == 0 and "going on from" in out, err


def test_dora_over_int8_is_refused(command, finetune, adapters, base, tmp_path):
    words = "--method dora does not run over --quantize int8"
    code, _, err = finetune(tmp_path / "a", "--method", "dora", "--quantize", "int8")
    assert code == 2 and words in err and not (tmp_path / "a").exists()
    code, _, err = command("chat", "--model", base, "--quantize", "int8", "--adapter", adapters["dora"])
    assert code == 2 and "dora does not run over --quantize int8" in err
    code, _, err = finetune(tmp_path / "a", "--adapter", adapters["dora"], "--quantize", "int8")
    assert code == 2 and words in err


def test_a_rank_is_compared_with_the_layers_own_width(finetune, tmp_path, tokenizer):
    code, _, err = finetune(tmp_path / "a", "--quantize", "nf4", "--rank", 1000)
    assert code == 2 and f"--rank 1000 is more than the widest layer of this model has, {len(tokenizer)}" in err


@pytest.mark.parametrize("subcommand", ["finetune", "chat", "evaluate"])
def test_without_bitsandbytes_it_names_the_package(command, monkeypatch, base, dialogues, tmp_path, subcommand):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "bitsandbytes" else find(name))
    options = [] if subcommand == "chat" else ["--data", dialogues]
    options += ["--output", tmp_path / "a"] if subcommand == "finetune" else []
    code, _, err = command(subcommand, "--model", base, "--quantize", "nf4", *options)
    assert code == 2 and "--quantize nf4 needs bitsandbytes, not installed here; run: pip install bitsandbytes" in err
