"""The values that options take: each is a function from what was typed to the value, or argparse's error."""

import argparse
from pathlib import Path

from ..finetune.text import cut

MOST = 10**15  # far beyond any use, and exact as a float


def _number(kind, accepts, expected):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accepts(value):
            raise argparse.ArgumentTypeError(f"{cut(text)} is not {expected}")
        return value

    return parse


positive_int = _number(int, lambda v: 0 < v <= MOST, f"a whole number above 0 and at most {MOST}")
count = _number(int, lambda v: 0 <= v <= MOST, f"a whole number from 0 to {MOST}")
positive = _number(float, lambda v: 0 < v < float("inf"), "a number above 0")
probability = _number(float, lambda v: 0 <= v < 1, "in [0, 1)")
temperature = _number(float, lambda v: 0 <= v < float("inf"), "0 or a number above 0")
top_p = _number(float, lambda v: 0 < v <= 1, "in (0, 1]")
seed = _number(int, lambda v: 0 <= v < 2**32, "a whole number in [0, 2**32)")


def folder(text: str) -> Path:
    """A folder to write into. Its name is not empty and, as safetensors asks for, text without a NUL."""
    if not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise argparse.ArgumentTypeError(f"{cut(repr(text))} is no folder's name")
    return Path(text)
