"""Sizes in bytes: read from text such as "24GiB", and written for people."""

import re

UNITS = {"": 1, **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)}}
UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)} | {"B": 1}
BY_LOWER = {unit.lower(): size for unit, size in UNITS.items()}
LARGEST = 2**60


def bytes_in(text: str) -> int:
    """The bytes that a text such as "24GiB", "16 GB" or "512MiB" names; GiB is 1024**3 bytes and GB is 1000**3.

    ValueError for any other text, and for a size that is not above 0 and at most 2**60.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = BY_LOWER.get(found[2].lower()) if found else None
    size = float(found[1]) * unit if found and unit else 0
    if not 1 <= size <= LARGEST:
        raise ValueError("a size is a number with a unit: KiB, MiB, GiB, TiB, KB, MB, GB or TB, such as 24GiB")
    return int(size)


def written(size: float) -> str:
    """Three digits of a number of bytes and a binary unit, such as "1.25 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
