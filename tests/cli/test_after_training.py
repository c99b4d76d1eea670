"""After training: a merged model, inspection of an adapter's folder, training on from an adapter, portable names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import besides
from tests.cli.test_bad_input import mistake


@pytest.fixture
def finetune(command, tiny_model, dialogues):
    def run(output, *options, steps=6, model=tiny_model):
        common = ["--model", model, "--data", dialogues, "--output", output, "--learning-rate", 0.02]
        return command("finetune", *besides([*common, "--max-steps", steps], options))

    return run


def answers(command, model, *options):
    code, out, err = command("chat", "--model", model, "--prompt", "what is blue", "--max-new-tokens", 8, *options)
    assert code == 0, err
    return out


def test_a_merged_model_answers_as_the_adapter(finetune, command, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for method in ("lora", "dora", "ia3", "bitfit"):
        fast = ["--learning-rate", 0.1] if method == "ia3" else []
        assert finetune(tmp_path / method, "--method", method, *fast, "--save-every", 0)[0] == 0
        merged = tmp_path / f"{method} merged"
        code, out, err = command("merge", "--model", tiny_model, "--adapter", tmp_path / method, "--output", merged)
        assert code == 0, err
        assert f"pypeft-fast chat --model '{merged}'\n" in out and not list(tmp_path.glob(".*"))
        assert (merged / "model.safetensors").is_file() and not list(merged.glob("adapter*"))
        assert answers(command, merged) == answers(command, tiny_model, "--adapter", tmp_path / method)
    assert answers(command, tmp_path / "lora merged") != answers(command, tiny_model)
    model, tokenizer = (kind.from_pretrained(merged) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert tokenizer.chat_template and torch.isfinite(model(torch.tensor([[1, 2]])).logits).all()


def test_what_cannot_be_merged(finetune, command, tiny_model, tmp_path, monkeypatch):
    def merge(adapter, output=tmp_path / "merged", model=tiny_model):
        return command("merge", "--model", model, "--adapter", adapter, "--output", output)

    for method, kind in (("prompt", "PROMPT_TUNING"), ("bottleneck", "BOTTLENECK")):
        assert finetune(tmp_path / method, "--method", method, "--save-every", 0, steps=1)[0] == 0
        mistake(merge(tmp_path / method), f"is of the method {kind}, which has no weights to fold into the base")
    assert finetune(tmp_path / "a", "--save-every", 0, steps=1)[0] == 0
    mistake(merge(tmp_path / "none"), "--adapter", "no such folder")
    mistake(merge(tmp_path / "a", tmp_path), "exists; name a new folder")
    mistake(merge(tmp_path / "a", model=tmp_path / "none"), "--model", "no such folder")
    from transformers import PreTrainedModel

    def full(self, folder, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    mistake(merge(tmp_path / "a"), "merged cannot be written: ", "No space left")
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".merged*"))


def test_biases_without_a_place_in_a_model_s_files(finetune, command, tiny_model, tmp_path):
    options = ["--method", "bitfit", "--target-modules", "q_proj,v_proj", "--save-every", 0]
    assert finetune(tmp_path / "a", *options, steps=1)[0] == 0
    result = command("merge", "--model", tiny_model, "--adapter", tmp_path / "a", "--output", tmp_path / "merged")
    mistake(result, "adds biases where LlamaForCausalLM has none", "use it as an adapter")


def test_inspect(finetune, command, tmp_path, dialogues):
    assert finetune(tmp_path / "a", "--rank", 3, "--target-modules", "q_proj,v_proj")[0] == 0
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    code, out, _ = command("inspect", tmp_path / "a")
    told = dict(line.split(maxsplit=1) for line in out.splitlines() if not line.startswith(("best", "held")))
    assert code == 0 and told["method"] == "LORA" and told["rank"] == "3" and told["targets"] == "q_proj, v_proj"
    assert told["data"] == str(dialogues) and f"{metrics['trainable_parameters']:,} in 8 tensors, F32" in out
    assert f"{metrics['eval_loss_before']:.3f} before, {metrics['eval_loss_after']:.3f} after, on 2 examples" in out
    facts = json.loads(command("inspect", tmp_path / "a", "--json")[1])
    assert facts["alpha"] == 32 and facts["steps"] == 6
    (tmp_path / "a" / "metrics.json").unlink()  # an adapter that PEFT wrote has no metrics
    code, out, _ = command("inspect", tmp_path / "a")
    assert code == 0 and "held-out" not in out and "LORA" in out
    mistake(command("inspect", tmp_path), "holds no whole adapter: adapter_config.json is missing")
    mistake(command("inspect", tmp_path / "none"), "no such folder")


def test_inspect_says_what_is_broken(command, tiny_adapter, tmp_path):
    from safetensors.torch import save_file

    assert command("inspect", tiny_adapter)[0] == 0
    folder = shutil.copytree(tiny_adapter, tmp_path / "a")
    tensors = load_file(folder / "adapter_model.safetensors")
    name = sorted(tensors)[2]
    tensors[name][0, 1] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors")
    code, out, err = command("inspect", folder)
    assert code == 2 and "LORA" in out and err.count("\n") == 1
    assert f"{folder} is broken: {name} has NaN or infinite values; get the adapter again" in err
    code, out, err = command("inspect", folder, "--json")
    assert code == 2 and json.loads(out)["broken"] == [f"{name} has NaN or infinite values"]
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 64}))
    code, _, err = command("inspect", folder)
    assert code == 2 and "rank 3, where the config says 64" in err and err.count("\n") == 1


def test_going_on_from_an_adapter(finetune, command, tmp_path):
    assert finetune(tmp_path / "first", "--rank", 3, "--seed", 1)[0] == 0
    before = load_file(tmp_path / "first" / "adapter_model.safetensors")
    code, out, err = finetune(tmp_path / "second", "--adapter", tmp_path / "first", "--seed", 1)
    assert code == 0, err
    first, second = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("first", "second"))
    assert second["eval_loss_before"] == pytest.approx(first["eval_loss_after"], abs=1e-5)
    assert second["settings"]["method"] == "lora" and second["settings"]["adapter"] == str(tmp_path / "first")
    after = load_file(tmp_path / "second" / "adapter_model.safetensors")
    assert after.keys() == before.keys() and any(not torch.equal(after[key], before[key]) for key in before)
    assert all(
        torch.equal(tensor, before[key])
        for key, tensor in load_file(tmp_path / "first" / "adapter_model.safetensors").items()
    )
    mistake(finetune(tmp_path / "b", "--adapter", tmp_path / "none"), "--adapter", "no such folder")
    mistake(finetune(tmp_path / "b", "--adapter", tmp_path / "first", "--rank", 4), "--rank does not go with --adapter")
    mistake(finetune(tmp_path / "b", "--adapter", tmp_path), "adapter_config.json is missing")


@pytest.mark.parametrize("method", ["dora", "ia3", "bitfit", "bottleneck"])
def test_every_method_goes_on_from_its_adapter(finetune, tmp_path, method):
    assert finetune(tmp_path / "first-run", "--method", method, steps=2)[0] == 0
    code, _, err = finetune(tmp_path / "second", "--adapter", tmp_path / "first-run", steps=2)
    assert code == 0, err
    assert json.loads((tmp_path / "second" / "metrics.json").read_text())["settings"]["method"] == method


def test_virtual_tokens_do_not_go_on(finetune, tmp_path):
    assert finetune(tmp_path / "a", "--method", "prompt", steps=1)[0] == 0
    mistake(
        finetune(tmp_path / "b", "--adapter", tmp_path / "a"),
        "is of --method prompt, which PEFT does not train on from files",
    )


def test_files_that_say_the_same_on_every_machine(finetune, tmp_path, tiny_model, dialogues):
    folder = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / "abc"
    shutil.copytree(tiny_model, folder)
    code, _, err = finetune(tmp_path / "a", model=folder)
    assert code == 0, err
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/tiny"
    seven = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert sorted(config["target_modules"]) == seven
    card = (tmp_path / "a" / "README.md").read_text()
    assert "base_model: owner/tiny" in card and str(dialogues) in card and "pypeft-fast finetune" in card
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert f"{metrics['eval_loss_before']:.3f} before, {metrics['eval_loss_after']:.3f} after" in card
    assert "--max-steps 6" in card and "--learning-rate 0.02" in card and str(tmp_path / "hub") not in config


def test_a_readme_of_the_user_stays(finetune, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("my notes\n")
    assert finetune(tmp_path / "a", steps=1)[0] == 0
    assert (tmp_path / "a" / "README.md").read_text() == "my notes\n"


def test_a_model_of_the_hub(command, monkeypatch, tiny_model):
    from pypeft_fast.finetune import hub

    monkeypatch.setattr(hub, "download", lambda name, kind, patterns, option: tiny_model)
    assert answers(command, "owner/tiny") == answers(command, tiny_model)
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = command("chat", "--model", "owner/no-such", "--prompt", "hi")
    mistake(result, "--model owner/no-such: there is no such folder", "hf download owner/no-such --local-dir FOLDER")
