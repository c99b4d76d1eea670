"""The ops are registered after the import of this package and of PyTorch, in either order."""

import pytest

from tests.interpreter import python

OPS = "print(torch.ops.pypeft_fast.lora_forward.default.name())"


@pytest.mark.parametrize(
    "code",
    [
        f"import pypeft_fast, torch; {OPS}",
        f"import torch, pypeft_fast; {OPS}",
        f"import pypeft_fast; from pypeft_fast.autograd.lora import lora_linear; import torch; {OPS}",
        f"from pypeft_fast.ops.lora_forward import lora_forward; import torch; {OPS}",
        f"import pypeft_fast.nn, torch; {OPS}",
        f"import peft, torch, pypeft_fast; {OPS}",
    ],
)
def test_ops_are_registered(code):
    done = python("-c", code)
    said = [line for line in done.stderr.splitlines() if "kernels-community" not in line]  # a message of bitsandbytes
    assert (done.stdout, said) == ("pypeft_fast::lora_forward\n", [])


def test_the_package_alone_imports_no_pytorch():
    code = "import pypeft_fast, sys; print('torch' in sys.modules, 'peft' in sys.modules)"
    assert python("-c", code).stdout == "False False\n"


def test_neither_the_command_nor_the_library_behind_it_imports_pytorch_at_once():
    code = "import pypeft_fast.cli.main, pypeft_fast.finetune, sys; print('torch' in sys.modules)"
    assert python("-c", code).stdout == "False\n"
