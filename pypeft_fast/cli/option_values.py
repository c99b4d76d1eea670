"""The types of option values: functions that convert a command-line text to a value, or raise argparse's error."""

import argparse
import math
from pathlib import Path

from ..finetune.sizes import bytes_in
from ..finetune.text import cut

MOST = 10**15  # larger than any useful value, and exact as a float


def _number(kind, accepts, expected, most=math.inf):
    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accepts(value):
            raise argparse.ArgumentTypeError(f"{cut(text)} is not {expected}")
        if value > most:
            raise argparse.ArgumentTypeError(f"{cut(text)} is more than {most}")
        return value

    return parse


positive_int = _number(int, lambda v: v > 0, "a whole number above 0", MOST)
count = _number(int, lambda v: v >= 0, "0 or a whole number above 0", MOST)
threads = _number(int, lambda v: 0 < v <= 1024, "a whole number from 1 to 1024")
port = _number(int, lambda v: 0 <= v < 2**16, "a whole number from 0 to 65535")
positive = _number(float, lambda v: 0 < v < float("inf"), "a number above 0")
epochs = _number(float, lambda v: 0 < v < math.inf, "a number above 0", MOST)
finite = _number(float, math.isfinite, "a finite number")
density = _number(float, lambda v: 0 < v <= 1, "a number above 0 and at most 1")
probability = _number(float, lambda v: 0 <= v < 1, "in [0, 1)")
not_negative = _number(float, lambda v: 0 <= v < float("inf"), "0 or a number above 0")
warmup = _number(
    float,
    lambda v: 0 <= v < 1 or v.is_integer() and v >= 1,
    "a fraction in [0, 1) or a whole number of steps",
    MOST,
)
top_p = _number(float, lambda v: 0 < v <= 1, "in (0, 1]")
seed = _number(int, lambda v: 0 <= v < 2**32, "a whole number in [0, 2**32)")


def positive_ints(text: str) -> list[int]:
    """Whole numbers above 0, separated by commas."""
    return [positive_int(part) for part in text.split(",")]


def size(text: str) -> int:
    """Bytes, given with a unit, such as 24GiB."""
    try:
        return bytes_in(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{cut(text)}: {error}") from error


def text(value: str) -> str:
    """A text that is not empty: the name of a model, of data or of an adapter."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"{cut(repr(value))} is empty; give a value")
    return value


def path(value: str) -> Path:
    return Path(text(value))


def folder(text: str) -> Path:
    """The path of a folder to write into: not empty, and valid Unicode without NUL, as safetensors requires."""
    if not text or "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise argparse.ArgumentTypeError(f"{cut(repr(text))} is not a valid name of a folder")
    return Path(text)
