"""`dir(pypeft_fast)` lists the public names, and every listed name exists."""

import inspect

import peft

import pypeft_fast as pf
from pypeft_fast._op import KERNELS
from pypeft_fast.frozen.formats import FORMATS

FUNCTIONS = "lora_linear dora_linear ia3_linear lora_gated_linear multi_lora_linear".split()
OWN = [*FUNCTIONS, *"nn using recording kernels fuse unfuse register".split()]


def test_dir_holds_the_package_and_peft_and_every_name_is_there():
    names = set(dir(pf))
    assert {*OWN, "FuseCallback", "FuseReport", "PeftModel", "get_peft_model", "BitFitConfig", *peft.__all__} <= names
    assert all(hasattr(pf, name) for name in names)


def test_no_other_module_shows_as_a_name_of_the_package():
    public = [name for name in dir(pf) if not name.startswith("_")]
    assert [name for name in public if inspect.ismodule(getattr(pf, name))] == ["nn"]
    assert not hasattr(pf, "importlib")


def test_the_help_lists_the_names_that_an_argument_takes():
    assert all(name in pf.using.__doc__ for name in KERNELS)
    assert all(f'"{name}"' in pf.Frozen.__doc__ for name in FORMATS)
