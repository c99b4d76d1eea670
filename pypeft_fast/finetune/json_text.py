"""Reads JSON from outside: returns the whole value, or raises one clear error."""

import json
from pathlib import Path

from .errors import UserError


def parse(text: str, source: str):
    """The value of a JSON text.

    Raises UserError, which starts with `source`: no JSON, nested too deeply for Python's reader, or a whole number of
    more digits than Python reads (sys.get_int_max_str_digits).
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise UserError(f"{source}: not JSON: {error.msg} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply") from error
    except ValueError as error:  # the only other one: a number's digits
        raise UserError(f"{source}: a whole number in it has too many digits") from error


def read_object(path: Path, source: str) -> dict:
    """The JSON object in a file. Raises UserError as `parse` does, and for an unreadable file and any other value."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 text: {error}") from error
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise UserError(f"{source}: empty")
    value = parse(text, source)
    if not isinstance(value, dict):
        raise UserError(f"{source}: a JSON object is expected, not {type(value).__name__}")
    return value


def check_text(text: str, what: str) -> None:
    """UserError if a text holds half of a surrogate pair: the text is not valid Unicode, and no tokenizer takes it.

    JSON can contain one as \\ud800; Python makes one from each byte of a command-line argument that is not UTF-8.
    """
    half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
    if half is not None:
        raise UserError(
            f"{what} holds {half!r}, half of a surrogate pair, at character {text.index(half) + 1}; remove it"
        )
