"""Mistakes a user can make and mend: one clear line on stderr and exit code 2, never a traceback."""

import contextlib
import importlib.util
from collections.abc import Iterator

# What to type for a missing module, where it is not just `pip install MODULE`.
PIP_NAME = {"yaml": "pyyaml", "chatterbot_corpus": "chatterbot-corpus"}


class UserError(Exception):
    """Raised with a message that names what was given, what is accepted and the remedy."""


def need(*modules: str) -> None:
    """Raises UserError with the pip command if one of these modules is not installed. Imports nothing."""
    missing = [PIP_NAME.get(m, m) for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        raise UserError(f"this needs {', '.join(missing)}, not installed here; run: pip install {' '.join(missing)}")


@contextlib.contextmanager
def as_user_error(what: str, kinds: tuple[type[Exception], ...] = (ValueError, TypeError, OSError)) -> Iterator[None]:
    """Turns the library's own errors about bad input into a UserError that starts with `what`."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from error
