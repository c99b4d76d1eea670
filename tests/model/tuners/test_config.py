"""The configs of our methods: their checks, their files, and their registration in PEFT."""

import copy
import json
import os
import pickle
import subprocess
import sys

import peft
import pytest

from pypeft_fast.model.tuners import BitFitConfig, BitFitModel, BottleneckConfig, BottleneckModel, register
from pypeft_fast.model.tuners.old_files import current_keys


@pytest.mark.parametrize("name", ["BITFIT", "BOTTLENECK"])
def test_the_methods_are_registered_in_peft(name):
    member = peft.PeftType(name)
    assert member is getattr(peft.PeftType, name) is peft.PeftType[name] and name in list(peft.PeftType)
    assert (member.name, member.value, str(member)) == (name, name, f"PeftType.{name}")
    assert member == name and hash(member) == hash(name) and isinstance(member, peft.PeftType)
    assert pickle.loads(pickle.dumps(member)) is member is copy.deepcopy(member)
    with pytest.raises(ValueError, match="is not a valid PeftType"):
        peft.PeftType("BITFIT2")


def test_registering_again_changes_nothing():
    before = list(peft.PeftType)
    register.register()
    assert list(peft.PeftType) == before
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

    assert PEFT_TYPE_TO_CONFIG_MAPPING["BITFIT"] is BitFitConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING["BOTTLENECK"] is BottleneckModel and BitFitModel.prefix == "bitfit_"


def test_a_pickled_config_is_read_where_nothing_was_imported():
    """The import of the class registers the method before the member of PeftType is looked up."""
    pickled = pickle.dumps([BitFitConfig(), BottleneckConfig(dropout=0.5)])
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())[1].dropout)"
    done = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert done.stdout.split() == [b"0.5"]


@pytest.mark.parametrize(
    "kind,options,error,words",
    [
        (BottleneckConfig, dict(placement="serial"), ValueError, "placement='serial' must be one of houlsby, pfeiffer"),
        (BottleneckConfig, dict(activation="sin"), ValueError, "activation='sin' must be one of relu"),
        (BottleneckConfig, dict(reduction_factor=0), ValueError, "reduction_factor=0 must be a positive number"),
        (BottleneckConfig, dict(scaling="2"), TypeError, "scaling='2' must be a positive number"),
        (BottleneckConfig, dict(dropout=1.0), ValueError, r"dropout=1.0 must be a number in \[0, 1\)"),
        (BottleneckConfig, dict(dropout=float("nan")), ValueError, r"dropout=nan must be a number in \[0, 1\)"),
        (BottleneckConfig, dict(layer_norm=1), TypeError, "layer_norm=1 must be True or False"),
        (BitFitConfig, dict(add_missing="yes"), TypeError, "add_missing='yes' must be True or False"),
        (BitFitConfig, dict(target_modules=["q", 3]), TypeError, r"target_modules=\['q', 3\] must be a list of names"),
        (BitFitConfig, dict(exclude_modules="("), ValueError, r"exclude_modules: '\(' is not a regular expression"),
        (BitFitConfig, dict(modules_to_save="head"), TypeError, "modules_to_save='head' must be a list of names"),
        (BitFitConfig, dict(task_type="CHAT"), ValueError, "Invalid task type: 'CHAT'"),
    ],
)
def test_mistakes(kind, options, error, words):
    with pytest.raises(error, match=words):
        kind(**options)


@pytest.mark.parametrize(
    "config",
    [
        BitFitConfig(target_modules=["b", "a"], add_missing=True, modules_to_save=["head"]),
        BottleneckConfig(placement="parallel", scaling=0.5, task_type="CAUSAL_LM"),
    ],
    ids=["bitfit", "bottleneck"],
)
def test_files(config, tmp_path):
    config.save_pretrained(tmp_path / "new" / "folder")
    found = peft.PeftConfig.from_pretrained(tmp_path / "new" / "folder")
    assert found == config and type(found) is type(config)
    assert os.listdir(tmp_path / "new" / "folder") == ["adapter_config.json"]
    with pytest.raises(AssertionError, match="is a file; give a folder"):
        config.save_pretrained(tmp_path / "new" / "folder" / "adapter_config.json")


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").symlink_to(victim)
    BitFitConfig().save_pretrained(tmp_path / "adapter")
    assert victim.read_text() == "mine"
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "BITFIT"


def test_names_of_earlier_files():
    x = "base_model.model.x"
    old = {
        f"{x}.q.bias": 1,
        "base_model.model.head.weight": 2,
        "base_model.model.head.bias": 3,
        f"{x}.k.bitfit_bias": 4,
    }
    expected = {f"{x}.q.bitfit_bias": 1, "base_model.model.head.weight": 2, "base_model.model.head.bias": 3}
    assert current_keys("BITFIT", old) == expected | {f"{x}.k.bitfit_bias": 4}
    old = {f"{x}.o.bottleneck.down.weight": 1, f"{x}.o.bottleneck.norm.bias": 2, "base_model.model.head.bias": 3}
    expected = {f"{x}.o.bottleneck_adapter_down.weight": 1, f"{x}.o.bottleneck_adapter_norm.bias": 2}
    assert current_keys(peft.PeftType.BOTTLENECK, old) == expected | {"base_model.model.head.bias": 3}
    assert current_keys("LORA", old) == old
