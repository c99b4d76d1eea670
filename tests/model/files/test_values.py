"""Values of a config that PEFT refuses only while it adds layers are refused before the model changes."""

import peft
import pytest

import pypeft_fast as pf
from pypeft_fast.model.files.lora_fields import CHANGE_BASE, KEEP_BASE, check_lora_values, keeps_base
from tests.model.files.made import adapted, assert_untouched, edit, lora_A, rewrite, state
from tests.model.zoo import build

FAULTS = [
    ("lora_alpha", "16", "must be a finite number"),
    ("lora_alpha", None, "must be a finite number"),
    ("lora_alpha", float("nan"), "must be a finite number"),
    ("lora_alpha", True, "must be a finite number"),
    ("lora_dropout", 1.5, "must be a number from 0 to 1"),
    ("lora_dropout", -0.1, "must be a number from 0 to 1"),
    ("lora_dropout", "x", "must be a number from 0 to 1"),
    ("lora_dropout", None, "must be a number from 0 to 1"),
    ("r", "4", "must be an integer of at least 1"),
    ("r", 0, "must be an integer of at least 1"),
    ("r", 4.0, "must be an integer of at least 1"),
    ("rank_pattern", {"q_proj": "2"}, "must be an integer of at least 1"),
    ("rank_pattern", [], "must be an object"),
    ("rank_pattern", {"(": 4}, "is no regular expression"),
    ("alpha_pattern", {"down_proj": "x"}, "must be a finite number"),
    ("alpha_pattern", None, "must be an object"),
    ("use_rslora", "x", "must be true or false"),
    ("init_lora_weights", "bogus", "must be true, false"),
    ("init_lora_weights", "pissa_niter_x", "must be true, false"),
    ("init_lora_weights", 3, "must be true, false"),
]


@pytest.mark.parametrize("field,value,words", FAULTS)
def test_a_value_is_refused_before_any_change(field, value, words, tmp_path):
    adapted().save_pretrained(tmp_path)
    edit(tmp_path, **{field: value})
    running = pf.get_peft_model(build("llama"), peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    for target, load in (
        (build("llama"), lambda target: pf.PeftModel.from_pretrained(target, tmp_path)),
        (running, lambda target: target.load_adapter(tmp_path, "new")),
        (build("llama"), lambda target: pf.load_adapters(target, tmp_path)),
    ):
        before = state(target)
        with pytest.raises(ValueError, match=f"adapter_config.json: {field}.*{words}"):
            load(target)
        assert_untouched(target, before)


def test_a_config_that_is_given_has_the_same_check(tmp_path):
    adapted().save_pretrained(tmp_path)
    base, config = build("llama"), peft.LoraConfig(r=4, lora_alpha="16", target_modules=["q_proj", "down_proj"])
    before = state(base)
    with pytest.raises(ValueError, match="config: lora_alpha='16' must be a finite number"):
        pf.PeftModel.from_pretrained(base, tmp_path, config=config)
    assert_untouched(base, before)


def test_an_orthogonal_start_needs_an_even_rank(tmp_path):
    adapted(r=3).save_pretrained(tmp_path)
    edit(tmp_path, init_lora_weights="orthogonal")
    base = build("llama")
    before = state(base)
    with pytest.raises(ValueError, match="r=3 must be even"):
        pf.PeftModel.from_pretrained(base, tmp_path)
    assert_untouched(base, before)


@pytest.mark.parametrize("start", [True, False, None, *KEEP_BASE, "Gaussian"])
def test_starts_that_keep_the_base(start):
    check_lora_values("config", peft.LoraConfig(r=4, init_lora_weights=start))
    assert keeps_base(start)


@pytest.mark.parametrize("start", [*(name for name in CHANGE_BASE if name not in ("loftq", "lora_ga")), "OLoRA"])
def test_starts_that_change_the_base(start):
    check_lora_values("config", peft.LoraConfig(r=4, init_lora_weights=start))
    assert not keeps_base(start)


def test_all_starts_that_change_the_base_are_known():
    assert not any(map(keeps_base, (*CHANGE_BASE, "pissa_niter_4", "unknown")))


def twice(prefix):
    def change(tensors):
        key = lora_A(tensors)
        return tensors | {key.replace("layers.", f"{prefix}layers."): tensors[key] * 0 + 7}

    return change


@pytest.mark.parametrize("options", [{}, dict(use_dora=True)])
def test_two_tensors_of_one_name(options, tmp_path):
    adapted(**options).save_pretrained(tmp_path)
    model = pf.PeftModel.from_pretrained(build("llama"), tmp_path)
    rewrite(tmp_path, twice("_orig_mod."))
    for target, load in (
        (build("llama"), lambda target: pf.PeftModel.from_pretrained(target, tmp_path)),
        (model, lambda target: target.load_adapter(tmp_path, "default")),
        (model, lambda target: target.load_adapter(tmp_path, "new")),
    ):
        before = state(target)
        with pytest.raises(ValueError, match=r"model.safetensors: .* and .* are both for the tensor .*q_proj.lora_A"):
            load(target)
        assert_untouched(target, before)
