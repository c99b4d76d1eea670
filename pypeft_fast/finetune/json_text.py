"""Reads JSON from users' files: returns the value, or raises UserError."""

import json
from pathlib import Path

from .errors import UserError


def parse(text: str, source: str):
    """The value of a JSON text.

    Raises UserError, whose message starts with `source`, if the text is not JSON, is nested too deeply for Python's
    parser, or has an integer of more digits than Python converts (sys.get_int_max_str_digits).
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        trouble = error.msg.removesuffix(" at")
        raise UserError(f"{source}: not JSON: {trouble} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise UserError(f"{source}: nested too deeply") from error
    except ValueError as error:  # json.loads raises no other ValueError than that for too many digits
        raise UserError(f"{source}: a whole number in it has too many digits") from error


def read_object(path: Path, source: str) -> dict:
    """The JSON object in a file. Raises UserError as `parse` does, and for an unreadable file or a value of another
    type."""
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
    """UserError if a text holds half of a surrogate pair: the text is not valid Unicode, and tokenizers reject it.

    JSON can contain a half as \\ud800. In a command-line argument, Python converts each byte that is not UTF-8 to one.
    """
    half = next((c for c in text if "\ud800" <= c <= "\udfff"), None)
    if half is not None:
        raise UserError(
            f"{what} holds {half!r}, half of a surrogate pair, at character {text.index(half) + 1}; remove it"
        )
