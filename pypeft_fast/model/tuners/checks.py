"""Checks of a config's values; every message names the field, its value and what is accepted."""

import math
import re


def flag(name, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")


def number(name, value, what, accepts) -> None:
    """An int or a float that `accepts` takes; `what` says which those are."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be {what}")
    if not accepts(value):
        raise ValueError(f"{name}={value!r} must be {what}")


def positive(name, value) -> None:
    number(name, value, "a positive number", lambda v: 0 < v < math.inf)


def probability(name, value) -> None:
    number(name, value, "a number in [0, 1)", lambda v: 0 <= v < 1)


def choice(name, value, accepted) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(accepted)}")


def names_or_pattern(name, value) -> set[str] | str | None:
    """A list of names as a set; a regular expression stays as it is."""
    if isinstance(value, str):
        _pattern(name, value)
        return value
    found = _names(name, value, "a list of names or a string")
    return None if found is None else set(found)


def module_names(name, value) -> list[str] | None:
    """Names, or ends of names, of modules: PEFT matches each as a regular expression too."""
    found = _names(name, value, "a list of names")
    for entry in found or ():
        _pattern(name, entry)
    return found


def _names(name, value, what) -> list[str] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple, set)) or not all(isinstance(v, str) and v for v in value):
        raise TypeError(f"{name}={value!r} must be {what}")
    return sorted(value) if isinstance(value, set) else list(dict.fromkeys(value))


def _pattern(name, value) -> None:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{name}: {value!r} is not a regular expression: {error}") from None
