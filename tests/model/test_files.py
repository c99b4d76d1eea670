"""Adapter folders that are broken, foreign or interrupted: what is said, and that nothing is lost."""

import json
import shutil

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import pypeft_fast as pf
from pypeft_fast.model import files
from tests.model.zoo import adapted, assert_same, build, liven, logits

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def folder(tmp_path):
    adapted(pf, "llama").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder, **changes):
    values = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in (values | changes).items() if v is not ...}))


def rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def truncate(folder, size):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:size] if size >= 0 else data[: len(data) + size])


def lora_A(tensors):
    return next(k for k in tensors if "q_proj.lora_A" in k)


BROKEN = {
    "no folder": (shutil.rmtree, FileNotFoundError, "has no adapter_config.json: there is no such folder"),
    "no config": (lambda f: (f / CONFIG).unlink(), FileNotFoundError, "it holds adapter_model.safetensors"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, "has no adapter_model.safetensors"),
    "a pickle": (
        lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"),
        FileNotFoundError,
        "adapter_model.bin is a pickle, which is never read",
    ),
    "cut in the data": (lambda f: truncate(f, -100), ValueError, "safetensors is truncated or corrupt"),
    "cut in the header": (lambda f: truncate(f, 20), ValueError, "truncated or corrupt"),
    "empty": (lambda f: truncate(f, 0), ValueError, "truncated or corrupt"),
    "config cut": (
        lambda f: (f / CONFIG).write_text('{"peft_type": "LO'),
        ValueError,
        "adapter_config.json is not JSON",
    ),
    "config a list": (lambda f: (f / CONFIG).write_text("[]"), ValueError, "a JSON object is expected, not list"),
    "unknown peft_type": (lambda f: edit(f, peft_type="MAGIC"), ValueError, "peft_type='MAGIC' is not supported"),
    "no peft_type": (lambda f: edit(f, peft_type=...), ValueError, "peft_type=None is not supported"),
    "unknown field": (lambda f: edit(f, colour=3), ValueError, "unknown field colour=3"),
    "unsupported value": (lambda f: edit(f, lora_bias=True), ValueError, "lora_bias=True is not supported"),
    "another rank": (lambda f: edit(f, r=5), ValueError, r"lora_A.weight has shape \(4, .*expect \(5, "),
    "another model": (
        lambda f: rewrite(f, lambda t: t.update({lora_A(t): torch.zeros(4, 64)})),
        ValueError,
        r"has shape \(4, 64\), this model and config expect \(4, 32\)",
    ),
    "a tensor too few": (
        lambda f: rewrite(f, lambda t: t.pop(lora_A(t))),
        ValueError,
        "has no base_model.*q_proj.lora_A",
    ),
    "a tensor too many": (
        lambda f: rewrite(f, lambda t: t.update(extra=torch.zeros(1))),
        ValueError,
        "has extra, which this model and config have no place for",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_folder_is_refused_and_the_model_left_as_it_was(how, folder):
    spoil, error, words = BROKEN[how]
    spoil(folder)
    model = build("llama")
    before = [(n, type(m)) for n, m in model.named_modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    with pytest.raises(error, match=words):
        pf.PeftModel.from_pretrained(model, folder)
    assert [(n, type(m)) for n, m in model.named_modules()] == before
    assert [p.requires_grad for p in model.parameters()] == trainable
    wrapped = adapted(pf, "llama")
    names, expected = set(wrapped.state_dict()), logits(wrapped)
    for adapter in ("default", "second"):
        with pytest.raises(error, match=words):
            wrapped.load_adapter(folder, adapter)
    assert set(wrapped.state_dict()) == names and torch.equal(logits(wrapped), expected)


class Crash(BaseException):
    """Not an Exception: like a kill, nothing handles it."""


STEPS = ["write config", "write weights", "sync", "rename weights", "rename config"]


@pytest.mark.parametrize("rank", [4, 6], ids=["same shapes", "another rank"])
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_save_leaves_one_whole_adapter(step, rank, folder, monkeypatch):
    old = logits(pf.PeftModel.from_pretrained(build("llama"), folder))
    newer = adapted(pf, "llama", seed=8, r=rank)
    new = logits(newer)

    def crash_before(function, condition):
        def run(*args, **kwargs):
            if condition(args):
                raise Crash
            return function(*args, **kwargs)

        return run

    def always(args):
        return True

    if step == "write config":
        monkeypatch.setattr(files, "_write_config", crash_before(files._write_config, always))
    elif step == "write weights":

        def half(tensors, path, metadata):
            save_file(tensors, path)
            path.write_bytes(path.read_bytes()[:50])
            raise Crash

        monkeypatch.setattr(files, "save_file", half)
    elif step == "sync":
        monkeypatch.setattr(files, "_sync", crash_before(files._sync, lambda args: args[0].name.startswith(WEIGHTS)))
    else:
        target = WEIGHTS if step == "rename weights" else CONFIG
        replace = crash_before(files.os.replace, lambda args: args[1].name == target)
        monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(Crash):
        newer.save_pretrained(folder)
    monkeypatch.undo()
    found = logits(pf.PeftModel.from_pretrained(build("llama"), folder))
    assert torch.equal(found, new if step == "rename config" else old) and not torch.equal(old, new)
    newer.save_pretrained(folder)  # and a later save is not confused by what lies there
    assert torch.equal(logits(pf.PeftModel.from_pretrained(build("llama"), folder)), new)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]


def cut_off(monkeypatch, folder, model):
    """A save that a crash ends between its two renames."""
    real = files.os.replace

    def crash(source, target):
        if target.name == CONFIG:
            raise Crash
        real(source, target)

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(files.os, "replace", crash)
        model.save_pretrained(folder)
    assert list(folder.glob(f"{CONFIG}.*.new"))


def test_what_a_crash_left_is_not_taken_for_the_config_of_a_later_save_by_peft(folder, monkeypatch):
    cut_off(monkeypatch, folder, adapted(pf, "llama", seed=8))
    theirs = adapted(peft, "llama", lora_alpha=12)
    theirs.save_pretrained(folder)
    found = pf.PeftModel.from_pretrained(build("llama"), folder)
    assert found.peft_config["default"].lora_alpha == 12
    assert_same(logits(found), logits(theirs))
    found.peft_config["default"].save_pretrained(folder)
    assert pf.LoraConfig.from_pretrained(folder).lora_alpha == 12
    found.save_pretrained(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", CONFIG, WEIGHTS]  # the README is PEFT's
    cut_off(monkeypatch, folder, adapted(pf, "llama", seed=8))
    truncate(folder, -100)
    with pytest.raises(ValueError, match="safetensors is truncated or corrupt"):
        pf.PeftModel.from_pretrained(build("llama"), folder)


def test_what_a_crash_left_is_not_taken_for_a_config_that_was_written_since(folder, monkeypatch):
    cut_off(monkeypatch, folder, adapted(pf, "llama", seed=8, lora_alpha=6))
    assert pf.LoraConfig.from_pretrained(folder).lora_alpha == 6
    edit(folder, lora_alpha=12)
    assert pf.LoraConfig.from_pretrained(folder).lora_alpha == 12


def test_one_adapter_gives_one_file(folder):
    before = (folder / WEIGHTS).read_bytes()
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    for _ in range(3):
        adapted(pf, "llama").save_pretrained(folder)
        assert (folder / WEIGHTS).read_bytes() == before


def test_both_files_have_the_permissions_that_the_umask_gives(folder):
    (folder / "other").write_text("")
    assert {(folder / name).stat().st_mode for name in (CONFIG, WEIGHTS)} == {(folder / "other").stat().st_mode}


def test_a_first_save_that_is_interrupted_leaves_no_adapter(tmp_path, monkeypatch):
    def crash(*args, **kwargs):
        raise Crash

    monkeypatch.setattr(files, "save_file", crash)
    with pytest.raises(Crash):
        adapted(pf, "llama").save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json"):
        pf.PeftModel.from_pretrained(build("llama"), tmp_path)


def test_saving_says_what_it_does_not_do(tmp_path):
    model = adapted(pf, "llama")
    with pytest.raises(ValueError, match="safe_serialization=False would write a pickle"):
        model.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(TypeError, match="has no option push_to_hub"):
        model.save_pretrained(tmp_path, push_to_hub=True)
    with pytest.raises(ValueError, match="there is no adapter 'other'; there are default"):
        model.save_pretrained(tmp_path, selected_adapters=["other"])
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file; give a folder"):
        model.save_pretrained(tmp_path / "file")


def test_trainable_or_not(folder):
    model = pf.PeftModel.from_pretrained(build("llama").train(), folder)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    model = pf.PeftModel.from_pretrained(build("llama").train(), folder, is_trainable=True)
    assert model.training
    assert {n.split(".lora_")[1][0] for n, p in model.named_parameters() if p.requires_grad} == {"A", "B"}


def test_loading_over_an_adapter_of_the_same_name_replaces_its_values(folder):
    model = adapted(pf, "llama")
    expected = logits(model)
    liven(model, 3)
    assert not torch.equal(logits(model), expected)
    model.load_adapter(folder, "default")
    assert torch.equal(logits(model), expected)


def test_config_round_trip(tmp_path):
    config = pf.LoraConfig(r=3, target_modules=["b", "a"], rank_pattern={"a": 2}, task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path)
    assert pf.LoraConfig.from_pretrained(tmp_path) == config
    assert pf.get_peft_config(config.to_dict()) == config
