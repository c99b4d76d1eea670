"""LoraConfig: PEFT's fields, and a clear error for every value that means nothing here."""

import dataclasses
import inspect

import peft
import pytest

import pypeft_fast as pf

BAD = [
    (dict(r=0), ValueError, "r=0 must be an integer of at least 1"),
    (dict(r="8"), ValueError, "r='8' must be an integer"),
    (dict(lora_alpha=0), ValueError, "lora_alpha=0 must be a positive number"),
    (dict(lora_dropout=1.0), ValueError, r"lora_dropout: dropout p=1.0 must be in \[0, 1\)"),
    (dict(lora_dropout=-0.1), ValueError, "p=-0.1"),
    (dict(lora_dropout="a"), TypeError, "lora_dropout='a' must be a number"),
    (dict(bias="some"), ValueError, "bias='some' must be one of none, all, lora_only"),
    (dict(init_lora_weights="magic"), ValueError, "init_lora_weights='magic' is not supported; use True, False"),
    (dict(init_lora_weights="loftq"), ValueError, "init_lora_weights='loftq'"),
    (dict(task_type="POETRY"), ValueError, "task_type='POETRY' must be one of SEQ_CLS"),
    (dict(target_modules=3), TypeError, "target_modules=3 must be a list of names or a string"),
    (dict(rank_pattern={"q_proj": 0}), ValueError, r"rank_pattern\['q_proj'\]=0 must be an integer"),
    (dict(alpha_pattern={"q_proj": -1}), ValueError, r"alpha_pattern\['q_proj'\]=-1 must be a positive"),
    (dict(layers_pattern="h"), ValueError, "layers_pattern='h' needs layers_to_transform"),
    (
        dict(target_modules=".*", layers_to_transform=[1]),
        ValueError,
        "layers_to_transform=.* needs target_modules to be a",
    ),
    (dict(lora_bias=True), ValueError, "lora_bias=True is not supported; leave it at False"),
    (dict(loftq_config={"bits": 4}), ValueError, "loftq_config={'bits': 4} is not supported"),
    (dict(target_parameters=["w"]), ValueError, "target_parameters=.* is not supported"),
    (dict(colour="red"), TypeError, "colour"),
    (dict(lora_alpha=float("inf")), ValueError, "lora_alpha=inf must be a positive number"),
    (dict(lora_dropout=float("nan")), ValueError, "p=nan must be in"),
    (dict(init_lora_weights=1), ValueError, "init_lora_weights=1 is not supported"),  # 1 == True, but is not it
    (dict(use_rslora="yes"), TypeError, "use_rslora='yes' must be True or False"),
    (dict(modules_to_save="lm_head"), TypeError, "modules_to_save='lm_head' must be a list of names"),
    (dict(modules_to_save=["("]), ValueError, r"modules_to_save: '\(' is not a regular expression"),
    (dict(target_modules="("), ValueError, r"target_modules: '\(' is not a regular expression: missing \)"),
    (dict(exclude_modules="["), ValueError, r"exclude_modules: '\[' is not a regular expression"),
    (dict(target_modules=[1]), TypeError, r"target_modules=\[1\] must be a list of names"),
    (dict(rank_pattern={"(": 2}), ValueError, r"rank_pattern: '\(' is not a regular expression"),
    (dict(rank_pattern=[2]), TypeError, r"rank_pattern=\[2\] must be a dict"),
    (dict(alpha_pattern={3: 2}), TypeError, "alpha_pattern: the key 3 must be a regular expression"),
    (dict(layers_to_transform="1"), TypeError, "layers_to_transform='1' must be the index of a layer"),
    (dict(layers_to_transform=[0, -1]), TypeError, r"layers_to_transform=\[0, -1\] must be the index"),
    (dict(layers_to_transform=0, layers_pattern=3), TypeError, "layers_pattern=3 must be a list of names"),
    (dict(layers_to_transform=0, layers_pattern=["h("]), ValueError, r"layers_pattern: 'h\(' is not a regular"),
]


@pytest.mark.parametrize("options,error,words", BAD)
def test_bad_config(options, error, words):
    with pytest.raises(error, match=words):
        pf.LoraConfig(**options)


def test_fields_order_and_defaults_are_pefts():
    ours, theirs = (list(inspect.signature(library.LoraConfig).parameters) for library in (pf, peft))
    assert ours == [name for name in theirs if name != "runtime_config"]  # about PEFT's own run, not in its files
    mine, yours = pf.LoraConfig(), peft.LoraConfig()
    for field in dataclasses.fields(mine):
        if field.name != "peft_version":  # of the PEFT that wrote a file
            assert getattr(mine, field.name) == getattr(yours, field.name), field.name
    assert mine.to_dict().keys() == yours.to_dict().keys()


@pytest.mark.parametrize("name", ["megatron_config", "corda_config", "alora_invocation_tokens", "use_bdlora"])
def test_a_field_that_is_not_supported_is_named(name):
    with pytest.raises(ValueError, match=rf"{name}=\['x'\] is not supported; leave it at None"):
        pf.LoraConfig(**{name: ["x"]})


def test_the_first_pattern_that_matches_counts_after_a_round_trip_too(tmp_path):
    config = pf.LoraConfig(rank_pattern={"z": 1, "a": 2}, alpha_pattern={r"1\..*": 3, "b": 4, "a": 5})
    config.save_pretrained(tmp_path)
    loaded = pf.LoraConfig.from_pretrained(tmp_path)
    assert list(loaded.rank_pattern) == ["z", "a"] and list(loaded.alpha_pattern) == [r"1\..*", "b", "a"]
