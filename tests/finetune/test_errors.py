"""The errors of libraries that become errors of the user."""

import pytest

from pypeft_fast.finetune.errors import UserError, as_user_error


def test_only_the_errors_meant_become_a_user_s():
    with pytest.raises(ZeroDivisionError), as_user_error("x", (ValueError, Exception)):
        raise ZeroDivisionError
    for error in (UnicodeError("a\nb"), Exception("a b")):
        with pytest.raises(UserError, match="^x: a b$"), as_user_error("x", (ValueError, Exception)):
            raise error
