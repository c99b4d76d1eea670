"""Errors that the user can correct: the command prints one clear line, never a traceback."""

import contextlib
import importlib.util
from collections.abc import Iterator

from .text import cut, one_line

# {module: its name on PyPI, if different}
PIP_NAME = {
    "yaml": "pyyaml",
    "chatterbot_corpus": "chatterbot-corpus",
    "prometheus_client": "prometheus-client",
}


class UserError(Exception):
    """An error of the user's; the message names the value that was given, what is accepted, and the remedy."""


def need(*modules: str, extra: str = "cli") -> None:
    """Raises UserError with the pip command if a module of this package's extra is not installed. Imports nothing."""
    missing = [PIP_NAME.get(m, m) for m in modules if importlib.util.find_spec(m) is None]
    if missing:
        pip = f'pip install "pypeft-fast[{extra}]"'
        raise UserError(f"this needs {', '.join(missing)}, not installed here; run: {pip}")


class as_user_error:
    """Converts errors that a library raises in this block for bad input to a UserError that starts with `what`.

    `kinds` are the classes of these errors; subclasses are included. Exception in `kinds` means exactly the class
    Exception, without subclasses: the tokenizers library raises it for every file that it cannot read, while an error
    in this program is always a subclass.
    """

    def __init__(self, what: str, kinds: tuple[type[Exception], ...] = (ValueError, TypeError, OSError)):
        self.what = what
        self.kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, traceback) -> None:
        if kind is None or issubclass(kind, UserError):
            return
        if any(kind is meant if meant is Exception else issubclass(kind, meant) for meant in self.kinds):
            text = str(error).partition("Exception raised from ")[0]  # after it PyTorch lists calls in C++
            says = cut(one_line(text), 1000) or kind.__name__
            raise UserError(f"{self.what}: {'unknown or missing: ' if kind is KeyError else ''}{says}") from error


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Within this block the message of every UserError begins with `what`, such as the one of several files."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
