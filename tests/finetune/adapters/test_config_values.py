"""Values of an adapter's config that no adapter can have."""

import pytest

from pypeft_fast.finetune.adapters.config_values import config_faults

GOOD = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16.5,
    "lora_dropout": 0.1,
    "rank_pattern": {"q_.*": 4},
    "alpha_pattern": None,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": None,
}


def test_a_good_config():
    assert config_faults(GOOD) == []
    assert config_faults({"peft_type": "IA3", "r": "x"}) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("r", float("nan"), "a whole number above 0"),
        ("r", True, "a whole number above 0"),
        ("lora_alpha", "16", "a finite number"),
        ("lora_alpha", float("inf"), "a finite number"),
        ("lora_alpha", 10**400, "a finite number"),
        ("lora_alpha", None, "a finite number"),
        ("lora_dropout", 1.5, "a number from 0 to 1"),
        ("rank_pattern", {"q": "x"}, "ranks by expressions for modules"),
        ("rank_pattern", {"(": 4}, "ranks by expressions for modules"),
        ("alpha_pattern", [1], "finite numbers by expressions for modules"),
        ("target_modules", ["q_proj", 3], "a text or a list of texts"),
        ("base_model_name_or_path", 3, "a text"),
    ],
)
def test_a_value_that_no_adapter_can_have(name, value, words):
    (sentence,) = config_faults(GOOD | {name: value})
    assert sentence.startswith(f"{name} in the config is ") and sentence.endswith(f", not {words}")


def test_a_lora_config_without_a_rank():
    assert config_faults({"peft_type": "LORA"}) == ["the config has no r"]
