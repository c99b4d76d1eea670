"""Every public function and method has type annotations, for editors and type checkers; py.typed ships."""

import inspect

import pytest

import pypeft_fast as pf
from pypeft_fast.autograd.bitfit import bitfit_linear
from pypeft_fast.autograd.bottleneck import bottleneck

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def own(function) -> bool:
    return inspect.isfunction(function) and (function.__module__ or "").startswith("pypeft_fast")


def methods(kind):
    """(name, function) of the public methods and the constructor of a class that this package defines."""
    for base in kind.__mro__:
        if base.__module__.startswith("pypeft_fast"):
            for name, member in vars(base).items():
                function = getattr(member, "__func__", getattr(member, "fget", member))
                if own(function) and (name == "__init__" or not name.startswith("_")):
                    yield f"{base.__name__}.{name}", function


def public():
    """{dotted name: function} of all public functions and methods."""
    found = {"autograd.bitfit_linear": bitfit_linear, "autograd.bottleneck": bottleneck}
    for holder, names in ((pf, pf.__all__), (pf.nn, pf.nn.__all__)):
        for name in names:
            value = getattr(holder, name)
            if inspect.isclass(value):
                found.update(methods(value))
            elif callable(value):
                found[name] = value
    return found


PUBLIC = public()


def lacking(function):
    """The parameters without an annotation, and "return" if it has none; self, cls and *args need none."""
    signature = inspect.signature(function)
    found = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.annotation is parameter.empty and parameter.kind not in VARIADIC and name not in ("self", "cls")
    ]
    is_constructor = function.__name__ == "__init__"
    return found + ["return"] * (signature.return_annotation is signature.empty and not is_constructor)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_function_is_annotated(name):
    assert lacking(PUBLIC[name]) == []


def test_the_list_reaches_functions_layers_and_models():
    names = {"lora_linear", "dora_linear", "fuse", "LoRALinear.from_linear", "AdapterLinear.merge", "FuseReport.calls"}
    assert {*names, "PeftModel.add_adapter", "SafeFiles.from_pretrained"} <= PUBLIC.keys()


def test_a_function_without_annotations_is_noticed():
    def half(x: int, y, *args):
        return x

    assert lacking(half) == ["y", "return"]
