"""Names of adapters that would be paths outside the folder, or invalid names of modules."""

import peft
import pytest

from pypeft_fast.model.files import check_adapter_name
from tests.model.files.made import PeftModel, adapted, assert_untouched, build, state

BAD = [
    "",
    ".",
    "..",
    "a.b",
    "a/b",
    "/abs/x",
    "training",
    "keys",
    "_parameters",
    "forward",
    "__base__",
    "a\0b",
    "\ud800",
]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_cannot_be_an_adapters_is_refused_before_anything_changes(name, tmp_path):
    with pytest.raises(ValueError, match="adapter_name="):
        check_adapter_name(name)
    adapted().save_pretrained(tmp_path)
    base = build("llama")
    before = state(base)
    with pytest.raises(ValueError, match="adapter_name="):
        PeftModel.from_pretrained(base, tmp_path, adapter_name=name)
    assert_untouched(base, before)
    model = adapted()
    before = state(model)
    with pytest.raises(ValueError, match="adapter_name="):
        model.load_adapter(tmp_path, name)
    with pytest.raises(ValueError, match="adapter_name="):
        model.add_adapter(name, peft.LoraConfig(target_modules=["q_proj"]))
    assert_untouched(model, before)


def test_a_name_that_is_no_text_is_a_type_error():
    with pytest.raises(TypeError, match="adapter_name=3 is a int; give a str"):
        check_adapter_name(3)


@pytest.mark.parametrize("name", ["default", "0", "my adapter", "zweiter_Adapter-2", "ä"])
def test_ordinary_names_pass(name):
    check_adapter_name(name)


def test_a_name_that_peft_let_through_is_not_saved_outside_the_folder(tmp_path):
    model = adapted(adapter=f"{tmp_path}/outside".replace(".", "_"))
    with pytest.raises(ValueError, match="contains '/'"):
        model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "outside").exists()
