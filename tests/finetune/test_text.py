"""Text is made safe for a terminal, and shortened."""

import unicodedata

from pypeft_fast.finetune import text
from tests.finetune.conftest import make_tokenizer


def test_every_character_that_steers_is_escaped_and_no_other():
    for code in range(0x110000):
        c = chr(code)
        category, shown = unicodedata.category(c), text.safe(c)
        if category in ("Cc", "Cs", "Zl", "Zp") or 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:
            assert shown.isascii() and shown.isprintable() and shown.startswith("\\"), c
        else:
            assert shown == c
    assert text.safe("a\nb\tc\rd", keep="\n\t") == "a\nb\tc\\rd"
    assert text.safe("नमस्ते 👩‍💻 שלום\u200f\n") == "नमस्ते 👩‍💻 שלום\u200f\\n"


def test_a_value_of_any_length_is_quoted_short():
    assert text.quoted("a") == "'a'"
    assert len(text.quoted("x" * 10**6)) < 250 and "1000002 characters" in text.quoted("x" * 10**6)


def test_a_tokenizer_needs_no_escaping():
    """Plain words are not changed by the tokenizer of the tests and text.safe."""
    tokenizer = make_tokenizer()
    words = "what is the capital of france"
    assert text.safe(tokenizer.decode(tokenizer(words)["input_ids"])) == words
