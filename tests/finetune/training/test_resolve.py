"""The settings that are derived from the given settings."""

import dataclasses

import pytest

from pypeft_fast.finetune.adapters.files import Adapter
from pypeft_fast.finetune.errors import UserError
from pypeft_fast.finetune.training.resolve import resolve
from pypeft_fast.finetune.training.settings import Settings

NOTHING = {field.name: None for field in dataclasses.fields(Settings)}
ASKED = NOTHING | {"model": "m", "data": "d", "max_length": 512, "eval_fraction": 0.1, "gradient_checkpointing": False}


def test_what_is_not_asked_follows_from_the_method_and_the_data():
    lora = resolve(ASKED, 40, None)
    assert (lora.method, lora.rank, lora.target_modules, lora.max_steps) == ("lora", 16, "all-linear", None)
    assert (lora.epochs, lora.batch_size, lora.learning_rate) == (10.0, 4, 5e-4)
    assert resolve(ASKED | {"epochs": 2.0, "learning_rate": 1.0}, 40, None).epochs == 2.0
    ia3 = resolve(ASKED | {"method": "ia3"}, 4000, None)
    assert (ia3.rank, ia3.target_modules, ia3.epochs, ia3.learning_rate) == (None, None, 3.0, 5e-3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("q_proj, v_proj", ["q_proj", "v_proj"]),
        ("a.q_proj", ["a.q_proj"]),
        (r".*\.q", r".*\.q"),
        ("all-linear,", "all-linear"),
    ],
)
def test_a_text_of_targets(given, expected):
    assert resolve(ASKED | {"target_modules": given}, 40, None).target_modules == expected


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("", "'' names no layer; give names separated by commas, a regular expression, or all-linear"),
        (" , ", "' , ' names no layer"),
        ("(q|v", r"'\(q\|v' is neither a name nor a regular expression: missing \)"),
        ("q_proj,all-linear", "'q_proj,all-linear': all-linear means every linear layer; give it alone"),
    ],
)
def test_a_text_without_a_target(given, says):
    with pytest.raises(UserError, match=f"`target_modules` {says}"):
        resolve(ASKED | {"target_modules": given}, 40, None)


def test_an_adapter_brings_its_method_and_allows_no_other():
    adapter = Adapter({"peft_type": "LORA", "use_dora": True}, {}, [], 0)
    assert resolve(ASKED | {"adapter": "a"}, 40, adapter).method == "dora"
    with pytest.raises(UserError, match="`rank` does not go with `adapter`"):
        resolve(ASKED | {"adapter": "a", "rank": 4}, 40, adapter)
    with pytest.raises(UserError, match="`adapter` a is of `method` prompt"):
        resolve(ASKED | {"adapter": "a"}, 40, Adapter({"peft_type": "PROMPT_TUNING"}, {}, [], 0))


def test_what_was_asked_stays_as_it_is():
    asked = dict(ASKED)
    resolve(asked, 40, None)
    assert asked == ASKED


@pytest.mark.parametrize("rate", [1.1, 1e6, 0.0, -1e-3, float("nan")])
def test_a_learning_rate_that_cannot_be_meant(rate):
    with pytest.raises(UserError, match=r"`learning_rate` .* above 0 and at most 1; usual for ia3 is 0.005"):
        resolve(ASKED | {"method": "ia3", "learning_rate": rate}, 40, None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "polynomial", "learning_rate": 1e-7}, "`learning_rate` 1e-07 does not go with `schedule` polyn"),
        ({"weight_decay": 2000.0, "learning_rate": 5e-4}, "`weight_decay` 2000 with `learning_rate` 0.0005 decays"),
    ],
)
def test_rates_that_a_schedule_or_a_decay_cannot_have(options, says):
    with pytest.raises(UserError, match=says):
        resolve(ASKED | options, 40, None)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_virtual_tokens_and_packed_rows(method):
    with pytest.raises(UserError, match=f"`packing` does not go with `method` {method}: its virtual tokens are before"):
        resolve(ASKED | {"method": method, "packing": True}, 40, None)
    assert resolve(ASKED | {"method": "lora", "packing": True}, 40, None).packing


def test_the_warm_up_of_a_schedule():
    assert resolve(ASKED | {"schedule": "linear"}, 40, None).warmup == 0.05
    assert resolve(ASKED | {"schedule": "linear", "warmup": 0.0}, 40, None).warmup == 0
    assert resolve(ASKED | {"schedule": "constant", "warmup": 0}, 40, None).warmup == 0
    assert resolve(ASKED | {"schedule": "constant"}, 40, None).warmup == 0
    with pytest.raises(UserError, match="`warmup` 0.1 does not go with `schedule` constant; take constant_with_warmup"):
        resolve(ASKED | {"schedule": "constant", "warmup": 0.1}, 40, None)


@pytest.mark.parametrize(("method", "says"), [("bitfit", "does not decay biases"), ("ia3", "switches layers off")])
def test_a_weight_decay_that_does_nothing_or_harm(method, says):
    with pytest.raises(UserError, match=f"`weight_decay` 0.1 does not go with `method` {method}: .*{says}"):
        resolve(ASKED | {"method": method, "weight_decay": 0.1}, 40, None)
    assert resolve(ASKED | {"method": method, "weight_decay": 0.0}, 40, None).method == method
