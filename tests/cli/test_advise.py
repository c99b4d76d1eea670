"""`pypeft-fast advise`: the tables, the report, the lines to paste, and mistakes."""

import json
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.test_bad_input import mistake
from tests.real_weights import needs_smollm2

QUICK = ["--rank", 4, "--batches", 2, "--no-timing", "--cpu", "4GiB"]


@pytest.fixture
def advise(command, tiny_model, dialogues):
    def run(*options, model=tiny_model, data=dialogues):
        return command("advise", "--model", model, "--data", data, *options)

    return run


def test_tables_report_and_a_trial(advise, command, tiny_model, tmp_path):
    files = ["--html", tmp_path / "a.html", "--json", tmp_path / "a.json"]
    code, out, err = advise(*QUICK, "--try", 2, "--eval-fraction", "0.3", *files)
    assert code == 0, err
    its = json.loads((tmp_path / "a.json").read_text())
    for row in its["costs"]["candidates"]:
        assert f"{row['trained_parameters']:,}" in out and row["seconds"] is None
    for share in its["gradient_energy"]["modules"].values():
        assert f"{100 * share['energy']:.1f} ± {100 * share['error']:.1f} %" in out
    for its_loss in its["trial"]["losses"].values():
        assert f"{its_loss['held_out_loss']:.3f}" in out
    assert its["examples"] == {"training": 14, "held_out": 6, "read_by_the_probe": 8}
    assert f"leads by {its['trial']['lead']:.3f}" in out and "Schulman" in out
    assert its["recommendation"]["command"] in out and its["recommendation"]["lora_config"] in out
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    plan = ["--cpu", "4GiB", "--method", "lora", "--base", "dense", "--rank", 4, "--no-probe", "--batch-size", 4]
    plan += ["--max-length", its["costs"]["wanted"]["max_length"], "--json", tmp_path / "plan.json"]
    assert command("plan", "--model", tiny_model, *plan)[0] == 0
    rows = json.loads((tmp_path / "plan.json").read_text())["candidates"]
    for mine, other in zip(its["costs"]["candidates"], rows, strict=True):
        for key in ("targets", "trained_parameters", "file_bytes"):
            assert mine[key] == other[key]
        assert mine["memory"]["activations"] == other["memory"]["activations"]


def pasted(command, advice, tmp_path, monkeypatch):
    """Runs the recommended command for one step; returns the number of trained parameters of its adapter."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(advice["recommendation"]["command"])
    assert words[:2] == ["pypeft-fast", "finetune"]
    code, _, err = command(*words[1:], "--max-steps", 1)
    assert code == 0, err
    return sum(its.numel() for its in load_file(tmp_path / "my-adapter" / "adapter_model.safetensors").values())


def of_peft(advice, model):
    """The number of trained parameters that PEFT gives for the recommended config."""
    import peft
    from transformers import AutoModelForCausalLM

    config = eval(advice["recommendation"]["lora_config"], {"LoraConfig": peft.LoraConfig})
    made = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    return made.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("targets", ["all-linear", "q,v"])
def test_the_lines_to_paste_train_that_candidate(advise, command, tiny_model, tmp_path, monkeypatch, targets):
    code, _, err = advise(*QUICK, "--targets", targets, "--seed", 3, "--json", tmp_path / "a.json")
    assert code == 0, err
    its = json.loads((tmp_path / "a.json").read_text())
    assert its["recommendation"]["targets"] == targets and "--seed 3" in its["recommendation"]["command"]
    (row,) = its["costs"]["candidates"]
    assert pasted(command, its, tmp_path, monkeypatch) == row["trained_parameters"] == of_peft(its, tiny_model)


def test_a_model_whose_layers_need_an_expression(advise, command, tokenizer, tmp_path, monkeypatch):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    code, out, err = advise(*QUICK, "--targets", "mlp", "--json", tmp_path / "a.json", model=tmp_path / "gpt2")
    assert code == 0, err
    its = json.loads((tmp_path / "a.json").read_text())
    assert list(its["gradient_energy"]["modules"]) == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]
    assert its["recommendation"]["target_modules"] == r".*\.\d+\.(mlp\.c_fc|mlp\.c_proj)"
    (row,) = its["costs"]["candidates"]
    assert pasted(command, its, tmp_path, monkeypatch) == row["trained_parameters"]
    assert of_peft(its, tmp_path / "gpt2") == row["trained_parameters"]


def test_over_a_quantised_base(advise, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    code, _, err = advise(*QUICK, "--quantize", "nf4", "--json", tmp_path / "a.json")
    assert code == 0, err
    its = json.loads((tmp_path / "a.json").read_text())
    assert {row["base"] for row in its["costs"]["candidates"]} == {"nf4"}
    assert "--quantize nf4" in its["recommendation"]["command"]
    dense = tmp_path / "b.json"
    assert advise(*QUICK, "--json", dense)[0] == 0
    shares = [x["gradient_energy"]["candidates"]["attention"]["energy"] for x in (its, json.loads(dense.read_text()))]
    assert shares[0] != shares[1] and shares[0] == pytest.approx(shares[1], abs=0.1)


def test_nothing_fits(advise):
    code, out, err = advise("--rank", 4, "--cpu", "1MiB", "--no-timing")
    assert code == 2 and out == "" and "loading the model" not in err
    assert "no candidate fits in 1 MiB: the smallest needs " in err and "--quantize nf4, a smaller --batch-size" in err


def test_a_trial_needs_two_candidates(advise):
    code, out, err = advise(*QUICK, "--targets", "mlp", "--try", 1)
    assert code == 2 and out == "" and "loading the model" not in err
    assert "--try compares two candidates, and only mlp fits or was asked for; leave --try out" in err


def test_mistakes(advise, command, tiny_model, dialogues, tmp_path):
    mistake(command("advise", "--model", tiny_model), "required: --data")
    mistake(advise(data=tmp_path / "none.jsonl"), "--data", "no such file")
    mistake(advise(model=tmp_path / "none"), "--model", "no such folder")
    mistake(advise("--html", tmp_path / "none" / "a.html"), "--html", "there is no such folder")
    mistake(advise("--html", tmp_path), "--html", "it is a folder")
    mistake(advise("--html", tmp_path / "a", "--json", tmp_path / "a"), "--html and --json are one file", "name two")
    mistake(advise("--json", tmp_path / "none" / "a.json"), "--json", "there is no such folder")
    mistake(advise("--try", 0), "argument --try: 0 is not a whole number above 0")
    mistake(advise("--targets", "q"), "argument --targets", "all-linear")
    mistake(advise("--learning-rate", 2), "--learning-rate 2 is outside what is accepted")
    mistake(advise("--batch-size", 19), "--data has 18 examples to train on, fewer than --batch-size 19")
    mistake(advise("--rank", 10**6), "--rank 1000000 is more than the widest layer of this model has")
    mistake(advise("--try", "--eval-fraction", 0), "--try needs held-out examples; give --eval-data")


def test_models_that_cannot_be_advised(advise, tiny_model, tokenizer, tmp_path):
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 32, "num_hidden_layers": 2,
              "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 128}  # fmt: skip
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    mistake(advise(model=tmp_path / "bert"), "is an encoder of the type bert; give a decoder")
    spoiled = shutil.copytree(tiny_model, tmp_path / "spoiled")
    weights = load_file(spoiled / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, spoiled / "model.safetensors", {"format": "pt"})
    code, _, err = advise(*QUICK, model=spoiled)
    last = err.splitlines()[-1]
    assert code == 2 and "the loss of batch 1 is nan before any training: the weights of --model are damaged" in last


@needs_smollm2
def test_smollm2(advise, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "Where is the shop?", "completion": "In Bern."}\n' * 3)
    options = ["--batches", 1, "--batch-size", 2, "--no-timing", "--eval-fraction", 0, "--cpu", "4GiB"]
    options += ["--targets", "attention", "--targets", "all-linear"]
    code, out, err = advise(*options, "--json", tmp_path / "a.json", model="smollm2", data=data)
    assert code == 0, err
    its = json.loads((tmp_path / "a.json").read_text())
    modules = its["gradient_energy"]["modules"]
    assert len(its["gradient_energy"]["layers"]) == 30 * 7 and "4,884,480" in out
    attention = sum(modules[name]["energy"] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    assert its["gradient_energy"]["candidates"]["attention"]["energy"] == pytest.approx(attention)
    # The gradients of v_proj, each of whose outputs serves three heads, are the largest per parameter.
    density = {name: share["energy_per_parameter"] for name, share in modules.items()}
    assert max(density, key=density.get) == "v_proj" and density["v_proj"] > 2
