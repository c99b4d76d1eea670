"""Text of data, of files and of models, made safe and short for messages.

A terminal obeys control characters: an escape sequence in a data line or in an answer may recolour, rewrite or rename
it, a carriage return overwrites its line, and an override of the writing direction shows a text as another. Each such
character is written as its Python escape, `\\x1b` for ESC.
"""

import unicodedata

# Of Unicode's categories: controls, halves of surrogate pairs, separators of lines and of paragraphs.
UNSAFE = ("Cc", "Cs", "Zl", "Zp")
# Embeddings, overrides and isolates of the writing direction (unicode.org/reports/tr9).
DIRECTION = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
LONGEST = 200  # characters of a value that a message quotes


def safe(text: str, keep: str = "") -> str:
    """The text with every character that could steer a terminal as its escape, those in `keep` as they are."""
    if text.isprintable():  # the usual case: no character is of an unsafe category
        return text
    return "".join(c if c in keep or not _steers(c) else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """A text's words, safe, with single spaces between."""
    return safe(" ".join(text.split()))


def quoted(value) -> str:
    """A value's repr, cut after LONGEST characters."""
    return cut(repr(value))


def cut(text: str, longest: int = LONGEST) -> str:
    """A text, cut after so many characters."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def _steers(character: str) -> bool:
    return unicodedata.category(character) in UNSAFE or ord(character) in DIRECTION
