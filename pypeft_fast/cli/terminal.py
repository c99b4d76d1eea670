"""What the command prints. Text of data, of files and of models reaches the terminal without what could steer it.

A terminal obeys control characters: an escape sequence in a data line or in an answer may recolour, rewrite or rename
it, a carriage return overwrites its line, and an override of the writing direction shows a text as another. Each such
character is printed as its Python escape, `\\x1b` for ESC.
"""

import logging
import sys
import unicodedata
import warnings

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


def say(text: str = "", end: str = "\n", file=None, keep: str = "") -> None:
    """Prints a text, safe, at once: one line, unless `keep` holds a newline.

    Characters that the stream's encoding lacks are escaped as well.
    """
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    written = (safe(text, keep) + end).encode(encoding, "backslashreplace").decode(encoding)
    print(written, end="", file=stream, flush=True)


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


def calm_libraries() -> None:
    """No progress bars of transformers while it loads, and its warnings safe: they may quote a model's files.

    Its announcements to PEFT's authors, of names of its own that PEFT calls and that will go, are left out.
    """
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|accelerate)\b")

    transformers.utils.logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        handler.removeFilter(_make_safe)
        handler.addFilter(_make_safe)


def _make_safe(record: logging.LogRecord) -> bool:
    record.msg, record.args = safe(record.getMessage(), keep="\n\t"), ()
    return True
