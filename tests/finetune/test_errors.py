"""The errors of libraries that become errors of the user."""

import pytest

from pypeft_fast.finetune.errors import UserError, as_user_error


def test_only_the_errors_meant_become_a_user_s():
    with pytest.raises(ZeroDivisionError), as_user_error("x", (ValueError, Exception)):
        raise ZeroDivisionError
    for error in (UnicodeError("a\nb"), Exception("a b")):
        with pytest.raises(UserError, match="^x: a b$"), as_user_error("x", (ValueError, Exception)):
            raise error


def test_the_calls_in_cpp_that_pytorch_lists_are_left_out():
    text = "no memory\nException raised from alloc_cpu at ../x.cpp:114 (most recent call first):\nframe #0"
    with pytest.raises(UserError, match="^x: no memory$"), as_user_error("x", (RuntimeError,)):
        raise RuntimeError(text)
