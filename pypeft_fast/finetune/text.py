"""Makes text from data, files and models safe and short for messages.

A terminal interprets control characters. An escape sequence in the data or in an answer can change the terminal's
colours, contents or title; a carriage return lets the text overwrite its line; an override of the writing direction
shows another text than the real one. Each such character is written as its Python escape, `\\x1b` for ESC.
"""

import unicodedata

# Unicode categories: control characters, surrogates, line separators and paragraph separators.
UNSAFE = ("Cc", "Cs", "Zl", "Zp")
# Characters that change the writing direction: embeddings, overrides and isolates (unicode.org/reports/tr9).
DIRECTION = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
LONGEST = 200  # the most characters of a value that a message quotes


def safe(text: str, keep: str = "") -> str:
    """The text with every character that a terminal interprets replaced by its escape, except those in `keep`."""
    if text.isprintable():  # the usual case: no character is of an unsafe category
        return text
    return "".join(c if c in keep or not _steers(c) else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """The words of a text, safe, joined by single spaces."""
    return safe(" ".join(text.split()))


def quoted(value) -> str:
    """The repr of a value, cut after LONGEST characters."""
    return cut(repr(value))


def cut(text: str, longest: int = LONGEST) -> str:
    """The text, cut after `longest` characters, with its length appended if it was cut."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def _steers(character: str) -> bool:
    return unicodedata.category(character) in UNSAFE or ord(character) in DIRECTION
