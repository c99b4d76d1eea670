"""After a load that fails midway the model is as before, also for methods without a dry run."""

import contextlib

import peft
import pytest
import torch
from safetensors.torch import load_file

import pypeft_fast as pf
from pypeft_fast.model.files.dry_run import rehearse
from tests.model.files.made import CONFIG, WEIGHTS, PeftModel, assert_untouched, rewrite, state
from tests.model.files.test_dry_run import config_of, small
from tests.model.zoo import liven

WITHOUT = {
    "OSF": lambda: config_of("OSF"),
    "PSOFT": lambda: config_of("PSOFT"),
    "FROD": lambda: config_of("FROD"),
    "KASA": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], kasa_config=peft.KasaConfig()),
}


def last(tensors):
    return max(tensors)


FAULTS = {
    "a shape": lambda t: t | {last(t): t[last(t)].flatten()[:-1].clone()},
    "a tensor too few": lambda t: {key: tensor for key, tensor in t.items() if key != last(t)},
    "a tensor too many": lambda t: t | {last(t) + "_x": torch.ones(1)},
}


WORDS = "adapter_model.safetensors (does not fit|has no |has .*which this model and config have no place for)"


def saved(folder, method):
    torch.manual_seed(0)
    peft.get_peft_model(small(), WITHOUT[method]()).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", WITHOUT)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_fit_leaves_the_base_model(method, fault, tmp_path):
    saved(tmp_path, method)
    base = small()
    assert rehearse(base, WITHOUT[method](), "default") is None
    for load in (PeftModel.from_pretrained, pf.PeftModel.from_pretrained, pf.load_adapters):
        load(small(), tmp_path)  # without the fault
    rewrite(tmp_path, FAULTS[fault])
    before = state(base)
    for load in (PeftModel.from_pretrained, pf.PeftModel.from_pretrained, pf.load_adapters):
        with pytest.raises(ValueError, match=WORDS):
            load(base, tmp_path)
        assert_untouched(base, before)
        assert not hasattr(base, "peft_config")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["default", "second"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_does_not_fit_leaves_the_running_adapter(name, fault, tmp_path):
    saved(tmp_path, "KASA")
    model = pf.PeftModel.from_pretrained(small(), tmp_path)
    liven(model, 3)
    rewrite(tmp_path, FAULTS[fault])
    before = state(model)
    with pytest.raises(ValueError, match=WORDS):
        model.load_adapter(tmp_path, name)
    assert_untouched(model, before)
    assert list(model.peft_config) == ["default"]


class Midway(Exception):
    pass


OVER = {
    "dora": dict(use_dora=True, target_modules=["q_proj"]),
    "a head": dict(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "biases": dict(target_modules=["q_proj"], bias="all"),
    "tokens": dict(target_modules=["q_proj"], trainable_token_indices=[1, 2]),
    "prompts": None,
    "adaption prompts": None,
}


def config(kind):
    if kind == "prompts":
        return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    if kind == "adaption prompts":
        return peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1)
    return peft.LoraConfig(r=4, **OVER[kind])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", OVER)
@pytest.mark.parametrize("after", [0, 1, "all"])
def test_an_error_midway_leaves_the_running_values(kind, after, tmp_path, monkeypatch):
    """Some of the file's tensors, or all, are in the model when the error comes."""
    model = pf.get_peft_model(small(), config(kind))
    liven(model, 1)
    model.save_pretrained(tmp_path)
    liven(model, 2)
    before = state(model)
    copied, raised = [], []
    real = torch.nn.Module._load_from_state_dict

    def stop(*arguments):
        raised.append(1)
        raise Midway

    def load(self, *arguments):
        if len(copied) == after:
            stop()
        held = {name: p.detach().clone() for name, p in self.named_parameters(recurse=False)}
        real(self, *arguments)
        copied.extend(n for n, p in self.named_parameters(recurse=False) if not torch.equal(held[n], p))

    monkeypatch.setattr(torch.nn.Module, "_load_from_state_dict", load)
    if after == "all":
        monkeypatch.setattr(type(model), "eval", stop)
    with contextlib.suppress(Midway):
        model.load_adapter(tmp_path, "default")
    if raised:
        assert_untouched(model, before)
    else:  # a kind whose only module holds all values
        assert after == 1 and len(copied) in (1, 2)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_in_pefts_injection_leaves_the_model(wrapped, tmp_path, monkeypatch):
    from peft.tuners.lora import LoraModel

    saved(tmp_path, "KASA")
    model = pf.PeftModel.from_pretrained(small(), tmp_path) if wrapped else small()
    before, calls = state(model), []
    real = LoraModel._create_and_replace

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr(LoraModel, "_create_and_replace", failing)
    with pytest.raises(KeyboardInterrupt):
        if wrapped:
            model.load_adapter(tmp_path, "second")
        else:
            pf.PeftModel.from_pretrained(model, tmp_path)
    assert_untouched(model, before)
    assert len(calls) == 2 and list(getattr(model, "peft_config", ["default"])) == ["default"]
    assert (tmp_path / CONFIG).is_file() and load_file(tmp_path / WEIGHTS)


@pytest.mark.filterwarnings("ignore")
def test_the_last_of_several_without_a_dry_run_leaves_none_of_them(tmp_path):
    for name in ("a", "b"):
        saved(tmp_path / name, "KASA")
    rewrite(tmp_path / "b", FAULTS["a shape"])
    base = small()
    before = state(base)
    with pytest.raises(ValueError, match=WORDS):
        pf.load_adapters(base, tmp_path)
    assert_untouched(base, before)
