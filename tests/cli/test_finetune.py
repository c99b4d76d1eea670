"""`pypeft-fast finetune` on a tiny Llama: its files, its report, and resuming after an interruption."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.conftest import besides


@pytest.fixture
def finetune(command, tiny_model, dialogues):
    def run(output, *options, steps=6):
        common = ["--model", tiny_model, "--data", dialogues, "--output", output, "--batch-size", 4]
        common += ["--rank", 4, "--max-steps", steps]
        return command("finetune", "--keep-checkpoints", *besides(common, options))

    return run


def test_it_learns_and_writes_what_it_says(finetune, tmp_path, tiny_model, dialogues, tokenizer):
    import peft
    from transformers import AutoModelForCausalLM

    from pypeft_fast.finetune.data.load import load_data
    from pypeft_fast.finetune.data.tokens import Collator
    from pypeft_fast.finetune.held_out import held_out_loss
    from pypeft_fast.finetune.training.prepare import prepare
    from pypeft_fast.finetune.training.settings import Settings

    output = tmp_path / "adapter"
    code, out, _ = finetune(output, "--learning-rate", 0.02, "--save-every", 10, "--eval-fraction", 0.2, steps=25)
    assert code == 0
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"] - 0.3
    assert (metrics["steps"], metrics["train_examples"], metrics["eval_examples"]) == (25, 16, 4)
    assert metrics["seconds_per_step"] > 0 and metrics["peak_memory_bytes"] > 1e8
    assert f"{metrics['eval_loss_before']:.3f} before, {metrics['eval_loss_after']:.3f} after" in out
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG") and (output / "loss.png").stat().st_size > 5000

    # The reported loss equals the loss of the adapter's files in PEFT.
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = peft.PeftModel.from_pretrained(base, output).eval()
    settings = Settings(**metrics["settings"])
    held_out = prepare(tokenizer, load_data(str(dialogues)), settings).held_out
    nats = []
    with torch.no_grad():
        for encoded in held_out:
            logits = model(torch.tensor([encoded.input_ids])).logits[0].log_softmax(-1)
            nats += [-float(logits[i - 1, t]) for i, t in enumerate(encoded.labels) if i and t != -100]
    assert metrics["eval_loss_after"] == pytest.approx(sum(nats) / len(nats), abs=1e-4)
    assert metrics["eval_loss_after"] == pytest.approx(
        held_out_loss(model, held_out, Collator.of(tokenizer), batch_size=3), abs=1e-4
    )


def test_nothing_is_cut_in_silence(finetune, tmp_path, dialogues, tokenizer):
    from pypeft_fast.finetune.data.load import load_data
    from pypeft_fast.finetune.data.tokens import encode

    lengths = [len(encode(tokenizer, e).input_ids) for e in load_data(str(dialogues))]
    limit = sorted(lengths)[-3]
    cut = sum(length > limit for length in lengths)
    code, out, _ = finetune(tmp_path / "a", "--max-length", limit, "--save-every", 0, steps=1)
    assert code == 0 and f"{cut} of 20 examples cut at {limit} tokens (longest {max(lengths)})\n" in out
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert (metrics["cut_examples"], metrics["longest_example"]) == (cut, max(lengths)) and 0 < cut < 20
    code, out, _ = finetune(tmp_path / "b", "--max-length", max(lengths), "--save-every", 0, steps=1)
    assert code == 0 and " cut " not in out and " left out" not in out


def test_checkpoints_hold_the_adapter_and_no_base_weight(finetune, tmp_path):
    assert finetune(tmp_path / "a", "--save-every", 3)[0] == 0
    folders = sorted(p.name for p in tmp_path.glob("a/checkpoint-*"))
    assert folders == ["checkpoint-3", "checkpoint-6"]
    for folder in folders:
        keys = load_file(tmp_path / "a" / folder / "adapter_model.safetensors").keys()
        assert keys and all(".lora_A." in k or ".lora_B." in k for k in keys)
        assert not list((tmp_path / "a" / folder).glob("model*"))
    assert finetune(tmp_path / "b", "--save-every", 0)[0] == 0
    assert not list(tmp_path.glob("b/checkpoint-*")) and (tmp_path / "b" / "adapter_model.safetensors").is_file()


def test_an_interrupted_run_ends_as_the_uninterrupted_one(finetune, tmp_path, monkeypatch):
    from pypeft_fast.finetune.training import train

    options = ["--save-every", 2, "--learning-rate", 0.01, "--dropout", 0.2]
    assert finetune(tmp_path / "whole", *options)[0] == 0

    real, steps = train.TimedTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        steps.append(self.state.global_step)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    monkeypatch.setattr(train.TimedTrainer, "training_step", interrupted)
    code, _, err = finetune(tmp_path / "parts", *options)
    assert code == 130 and "--resume" in err and "Traceback" not in err
    assert not (tmp_path / "parts" / "adapter_model.safetensors").exists()
    torn = tmp_path / "parts" / "checkpoint-5"  # an incomplete checkpoint, from which no run resumes
    torn.mkdir()
    (torn / "adapter_config.json").write_text("{}")

    code, out, _ = finetune(tmp_path / "parts", *options, "--resume")
    assert code == 0 and "checkpoint-4" in out
    assert steps == [0, 1, 2, 3, 4, 5, 4, 5]
    whole, parts = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for key in whole:
        assert torch.equal(whole[key], parts[key]), key
    first, second = (json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "parts"))
    for name in ("steps", "eval_loss_before", "eval_loss_after", "train_loss_last"):
        assert first[name] == second[name]


def test_a_packed_run_with_other_options_goes_on_to_the_same_adapter(finetune, tmp_path, monkeypatch):
    from pypeft_fast.finetune.training import train

    options = ["--save-every", 2, "--dropout", 0.2, "--packing", "--max-length", 64, "--batch-size", 2]
    options += ["--schedule", "polynomial", "--warmup", 1, "--optimizer", "adafactor", "--weight-decay", 0.1]
    code, out, _ = finetune(tmp_path / "whole", *options)
    assert code == 0 and "6 steps of 2 packed rows" in out and " packed rows, 2 held out" in out
    real = train.TimedTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(train.TimedTrainer, "training_step", interrupted)
        assert finetune(tmp_path / "parts", *options)[0] == 130
    assert finetune(tmp_path / "parts", *options, "--resume")[0] == 0
    whole, parts = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    code, _, err = finetune(tmp_path / "parts", *[o for o in options if o != "--packing"], "--resume")
    assert code == 2 and "--packing was True in the run to go on with and is False now" in err


def test_nothing_is_overwritten_unasked(finetune, tmp_path):
    output = tmp_path / "a"
    assert finetune(output, "--save-every", 2)[0] == 0
    before = (output / "adapter_model.safetensors").read_bytes()
    code, _, err = finetune(output, "--seed", 1)
    assert code == 2 and "--resume" in err and "--overwrite" in err
    assert (output / "adapter_model.safetensors").read_bytes() == before
    code, _, err = finetune(output, "--save-every", 2, "--resume", "--seed", 1)
    assert code == 2 and "--seed was 0 in the run to go on with and is 1 now" in err
    assert finetune(output, "--seed", 1, "--overwrite")[0] == 0
    assert (output / "adapter_model.safetensors").read_bytes() != before
    assert not (output / "checkpoint-4").exists()


def test_a_run_that_is_complete_stays_as_it_is(finetune, tmp_path):
    output, options = tmp_path / "a", ["--save-every", 2, "--learning-rate", 0.01, "--dropout", 0.2]
    assert finetune(output, *options, steps=4)[0] == 0
    before = {p.name: p.read_bytes() for p in output.iterdir() if p.is_file()}
    code, out, _ = finetune(output, *options, "--resume", steps=4)
    assert code == 0 and "is complete: all 4 steps are done" in out
    assert {p.name: p.read_bytes() for p in output.iterdir() if p.is_file()} == before

    # As if the run was cut off after the last step.
    for name in ("metrics.json", "adapter_model.safetensors", "adapter_config.json"):
        (output / name).unlink()
    code, out, _ = finetune(output, *options, "--resume", steps=4)
    assert code == 0 and "checkpoint-4" in out
    assert (output / "adapter_model.safetensors").read_bytes() == before["adapter_model.safetensors"]
    first, second = (json.loads(text) for text in (before["metrics.json"], (output / "metrics.json").read_text()))
    assert second["steps"] == 4
    for name in ("eval_loss_before", "eval_loss_after", "train_loss_last"):
        assert first[name] == second[name]


def test_overwriting_waits_until_everything_else_is_checked(finetune, tmp_path):
    output = tmp_path / "a"
    assert finetune(output, "--save-every", 2)[0] == 0
    there = {p.name for p in output.iterdir()}
    wrong = (["--model", "nope"], ["--max-length", 3], ["--target-modules", "nope"], ["--eval-data", "nope.jsonl"])
    for options in wrong:
        assert finetune(output, "--overwrite", *options)[0] == 2
        assert {p.name for p in output.iterdir()} == there and "checkpoint-6" in there


@pytest.mark.parametrize("steps,says", [(4, "the loss of step 2 is nan"), (1, "the loss on held-out data is nan")])
def test_a_run_that_diverges_ends_with_that(finetune, tmp_path, monkeypatch, steps, says):
    monkeypatch.setattr("pypeft_fast.finetune.training.resolve.LARGEST_RATE", 1e31)  # otherwise the rate is refused
    code, _, err = finetune(tmp_path / "a", "--learning-rate", 1e30, steps=steps)
    assert code == 2 and "Traceback" not in err
    assert f"{says}: training has diverged, no adapter is written; lower --learning-rate" in err
    assert not (tmp_path / "a" / "adapter_model.safetensors").exists()
    assert not (tmp_path / "a" / "metrics.json").exists()


def test_gradient_checkpointing_changes_nothing_but_memory(finetune, tmp_path):
    options = ["--save-every", 0, "--dropout", 0.1, "--learning-rate", 0.01]
    assert finetune(tmp_path / "a", *options)[0] == 0
    assert finetune(tmp_path / "b", *options, "--gradient-checkpointing")[0] == 0
    first, second = (load_file(tmp_path / n / "adapter_model.safetensors") for n in "ab")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=1e-5, atol=1e-6)


def test_targets_by_name_and_a_bfloat16_base(finetune, tmp_path):
    code, out, _ = finetune(tmp_path / "a", "--target-modules", "q_proj, v_proj", "--dtype", "bfloat16")
    assert code == 0 and "trainable params: 896 ||" in out  # 2 layers x 4 x (32 + 32 and 32 + 16)
    keys = load_file(tmp_path / "a" / "adapter_model.safetensors").keys()
    assert {k.split(".")[-3] for k in keys} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    "given,adapted",
    [
        ("self_attn.q_proj,v_proj", {"0.q_proj", "1.q_proj", "0.v_proj", "1.v_proj"}),
        ("self_attn.q_proj", {"0.q_proj", "1.q_proj"}),
        ("model.layers.1.self_attn.q_proj", {"1.q_proj"}),
        (r".*\.0\..*\.[qv]_proj", {"0.q_proj", "0.v_proj"}),
    ],
)
def test_a_comma_means_names_and_anything_else_an_expression(finetune, tmp_path, given, adapted):
    assert finetune(tmp_path / "a", "--target-modules", given, steps=1)[0] == 0
    keys = [key.split(".") for key in load_file(tmp_path / "a" / "adapter_model.safetensors")]
    assert {f"{key[4]}.{key[-3]}" for key in keys} == adapted


@pytest.mark.parametrize("method", ["dora", "ia3", "bitfit", "bottleneck", "prompt", "prefix"])
def test_every_method_learns_and_its_files_answer(command, tiny_model, dialogues, tmp_path, method):
    output = tmp_path / method
    common = ["--model", tiny_model, "--data", dialogues, "--output", output, "--batch-size", 4, "--max-steps", 12]
    fast = ["--learning-rate", 0.05] if method in ("ia3", "prompt", "prefix") else ["--learning-rate", 0.02]
    code, _, err = command("finetune", *common, "--method", method, *fast, "--save-every", 5)
    assert code == 0, err
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"] - 0.01
    assert json.loads((output / "adapter_config.json").read_text())["peft_type"] == {
        "dora": "LORA", "ia3": "IA3", "bitfit": "BITFIT", "bottleneck": "BOTTLENECK", "prompt": "PROMPT_TUNING",
        "prefix": "PREFIX_TUNING",
    }[method]  # fmt: skip
    code, _, err = command("finetune", *common, "--method", method, *fast, "--save-every", 5, "--resume")
    assert code == 0, err
    chat = ["--model", tiny_model, "--adapter", output, "--prompt", "hi", "--max-new-tokens", 4]
    code, _, err = command("chat", *chat)
    assert code == 0, err
