"""`pypeft-fast adapters`: list, diff, merge and export."""

import json
import shutil

import pytest

from pypeft_fast.finetune.adapters.listing import adapters_below
from tests.cli.test_bad_input import mistake


@pytest.fixture
def folder(tiny_adapter, tmp_path):
    """A folder with two whole adapters, one of them below, a broken one, and a checkpoint."""
    for name in ("one", "runs/two", "broken", "one/checkpoint-3"):
        shutil.copytree(tiny_adapter, tmp_path / "all" / name)
    weights = tmp_path / "all" / "broken" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    return tmp_path / "all"


def test_list(command, folder):
    code, out, err = command("adapters", "list", folder, "--json")
    assert code == 0, err
    rows = {row["folder"].removeprefix(f"{folder}/"): row for row in json.loads(out)}
    assert set(rows) == {"one", "runs/two", "broken"}
    assert "cut short" in rows["broken"]["fault"] and rows["broken"]["method"] is None
    one = rows["one"]
    assert (one["method"], one["rank"], one["targets"]) == ("LORA", 3, ["q_proj", "v_proj"])
    assert one["parameters"] == 2 * 3 * ((32 + 32) + (32 + 16))
    assert one["bytes"] == (folder / "one" / "adapter_model.safetensors").stat().st_size
    code, out, _ = command("adapters", "list", folder)
    assert code == 0 and "LORA" in out and "672" in out and "broken" in out and one["saved"][:10] in out


SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("targets", "run", "shown"),
    [
        (SEVEN, {"target_modules": "all-linear"}, "all-linear"),
        (SEVEN, {}, "{down,gate,k,o,q,up,v}_proj"),
        (["q_proj", "v_proj"], {}, "q_proj, v_proj"),
        (["c_attn", "q_proj", "v_proj"], {}, "c_attn, q_proj, v_proj"),
        (["_proj", "q_proj", "v_proj"], {}, "_proj, q_proj, v_proj"),
        ("all-linear", {}, "all-linear"),
        ([], {}, ""),
    ],
)
def test_a_list_shows_targets_in_few_characters(tiny_adapter, tmp_path, targets, run, shown):
    shutil.copytree(tiny_adapter, tmp_path / "one")
    config = tmp_path / "one" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": targets}))
    (tmp_path / "one" / "finetune.json").write_text(json.dumps(run))
    (its,) = adapters_below([tmp_path])
    assert its.targets == shown


def test_diff(command, folder):
    code, out, err = command("adapters", "diff", folder / "one", folder / "runs" / "two")
    assert code == 0, err
    assert "the configs agree" in out and "q_proj" in out and "v_proj" in out and "0.00%" in out
    config = folder / "one" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 12}))
    its = json.loads(command("adapters", "diff", folder / "one", folder / "runs" / "two", "--json")[1])
    assert its["config"] == {"lora_alpha": [12, 6]}
    assert its["updates"]["q_proj"]["relative"] == pytest.approx(0.5)
    assert '"lora_alpha"' not in command("adapters", "diff", folder / "one", folder / "runs" / "two")[1]


def test_export(command, folder, tiny_model, tmp_path):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    output = tmp_path / "one.gguf"
    arguments = ["adapters", "export", folder / "one", "--model", tiny_model, "--output", output]
    code, out, err = command(*arguments)
    assert code == 0, err
    assert f"8 tensors are in {output}" in out and f"--lora {output}" in out
    names = {tensor.name for tensor in gguf.GGUFReader(output).tensors}
    assert "blk.1.attn_v.weight.lora_b" in names and len(names) == 8
    mistake(command(*arguments), f"--output {output} exists; name a new file")


def test_merge(command, folder, tiny_model, tmp_path):
    one, two, output = folder / "one", folder / "runs" / "two", tmp_path / "sum"
    code, out, err = command("adapters", "merge", one, two, "--weights", 0.75, -0.25, "--output", output)
    assert code == 0, err
    assert f"2 adapters is in {output}" in out and f"chat --model MODEL --adapter {output}" in out and err == ""
    _, out, _ = command("adapters", "list", output, "--json")
    assert json.loads(out)[0]["rank"] == 6
    _, out, _ = command("adapters", "diff", one, output, "--json")
    assert json.loads(out)["updates"]["q_proj"]["relative"] == pytest.approx(0.5)  # 0.75 - 0.25 of the same update
    code, out, err = command(
        "chat", "--model", tiny_model, "--adapter", output, "--prompt", "hi", "--max-new-tokens", 2
    )
    assert code == 0, err


def test_merge_draws_what_dare_drops_by_the_seed(command, folder, tmp_path):
    def values(name, seed):
        arguments = ["--weights", 1, 1, "--method", "dare_linear", "--density", 0.5, "--seed", seed]
        assert command("adapters", "merge", folder / "one", folder / "runs/two", *arguments, "--output", name)[0] == 0
        return (name / "adapter_model.safetensors").read_bytes()

    assert values(tmp_path / "a", 1) == values(tmp_path / "b", 1) != values(tmp_path / "c", 2)


def test_merge_keeps_a_chat_template_that_all_adapters_have(command, folder, tmp_path):
    both, output = [folder / "one", folder / "runs/two"], tmp_path / "sum"
    (both[0] / "chat_template.jinja").write_text("{{ messages }}")
    arguments = ["adapters", "merge", *both, "--weights", 1, 1, "--output", output]
    says = f"the chat templates of {both[0]} and {both[1]} differ"
    mistake(command(*arguments), f"{says}, since {both[1]} has no chat_template.jinja")
    (both[1] / "chat_template.jinja").write_text("{{ messages[0] }}")
    mistake(command(*arguments), f"{says}; give adapters with the same chat_template.jinja")
    assert not output.exists()
    (both[1] / "chat_template.jinja").write_text("{{ messages }}")
    assert command(*arguments)[0] == 0
    assert (output / "chat_template.jinja").read_text() == "{{ messages }}"


def test_merge_notes_that_the_base_models_differ(command, folder, tmp_path):
    config = folder / "one" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "other/model"}))
    arguments = [folder / "one", folder / "runs/two", "--weights", 1, 1, "--output", tmp_path / "sum"]
    code, _, err = command("adapters", "merge", *arguments)
    assert code == 0 and "was trained over other/model" in err


def test_mistakes_of_merge(command, folder, tmp_path):
    both = ["adapters", "merge", folder / "one", folder / "runs/two"]
    to = ["--output", tmp_path / "sum"]
    mistake(command(*both[:3], "--weights", 1, *to), "is one adapter; give the folders of two or more")
    mistake(command(*both, "--weights", 1, *to), "--weights has 1 numbers for 2 adapters")
    mistake(command(*both, "--weights", 1, "nan", *to), "--weights: nan is not a finite number")
    mistake(command(*both, "--weights", 1, 1, "--method", "ties", *to), "--method ties needs --density")
    mistake(command(*both, "--weights", 1, 1, "--density", 0.5, *to), "--density does not go with --method cat")
    mistake(command(*both, "--weights", 1, 1, "--method", "ties", "--density", 0, *to), "--density: 0 is not")
    mistake(command(*both, "--weights", 1, 1, "--rank", 4, *to), "--rank does not go with --method cat")
    mistake(command(*both, "--weights", 1, 1, "--method", "svd", "--rank", 40, *to), "--rank 40 is above 16", "v_proj")
    mistake(command(*both, "--weights", 1e39, 1, *to), "--weights 1e+39 1.0 give a broken adapter")
    mistake(command(*both, folder / "broken", "--weights", 1, 1, 1, *to), "is cut short")
    mistake(command(*both, "--weights", 1, 1, "--output", folder), f"--output {folder} exists; name a new folder")
    config = folder / "one" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 5}))
    mistake(command(*both, "--weights", 1, 1, "--method", "linear", *to), "--method linear needs adapters of one rank")
    assert not (tmp_path / "sum").exists()


def test_mistakes(command, folder, tiny_model, tmp_path):
    mistake(command("adapters"), "ACTION")
    mistake(command("adapters", "sell", folder), "'sell'", "list")
    mistake(command("adapters", "list"), "DIR")
    mistake(command("adapters", "list", tmp_path / "none"), "no such folder")
    (tmp_path / "empty").mkdir()
    mistake(command("adapters", "list", tmp_path / "empty"), "no adapter in")
    mistake(command("adapters", "diff", folder / "one", folder / "broken"), "adapter_model.safetensors is cut short")
    mistake(command("adapters", "diff", folder / "one", tmp_path / "none"), "no such folder")
    to = ["--output", tmp_path / "none" / "a.gguf"]
    mistake(command("adapters", "export", folder / "one", "--model", tiny_model, *to), "--output", "cannot be written")
    mistake(command("adapters", "export", folder / "one", "--model", "none", *to), "--model none: no such folder")
    config = folder / "one" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": "6"}))
    broken = f"{folder / 'one'} is broken: lora_alpha in the config is '6', not a finite number; get the adapter again"
    mistake(command("adapters", "diff", folder / "one", folder / "runs" / "two"), broken)
    mistake(
        command("adapters", "export", folder / "one", "--model", tiny_model, "--output", tmp_path / "a.gguf"), broken
    )
    both = [folder / "one", folder / "runs" / "two", "--weights", 1, 1, "--output", tmp_path / "sum"]
    mistake(command("adapters", "merge", *both), broken)
    assert "is broken: lora_alpha in" in command("inspect", folder / "one")[2]
    assert "lora_alpha in the config is '6', not a finite" in command("adapters", "list", folder)[1]
