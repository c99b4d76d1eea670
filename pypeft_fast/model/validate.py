"""Checks of a config's values; every message names the field, its value and what is accepted."""

import math
import re


def flag(name, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")


def rank(name, value) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")


def optional_rank(name, value) -> None:
    if value is not None:
        rank(name, value)


def positive(name, value) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be a positive number")


def regex(name, value) -> None:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{name}: {value!r} is not a regular expression: {error}") from None


def names(name, value) -> list[str] | None:
    """A list of names without repeats, in their order, or None. A lone string is an error: it is no list."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple, set)) or not all(isinstance(v, str) and v for v in value):
        raise TypeError(f"{name}={value!r} must be a list of names")
    return sorted(value) if isinstance(value, set) else list(dict.fromkeys(value))


def module_names(name, value) -> list[str] | None:
    """Names, or ends of names, of modules: each is matched as a regular expression too, as PEFT does."""
    found = names(name, value)
    for entry in found or ():
        regex(name, entry)
    return found


def choice(name, value, accepted) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(str(a) for a in accepted)}")


def names_or_pattern(name, value) -> set[str] | str | None:
    """A list of names as a set; a regular expression stays as it is."""
    if isinstance(value, str):
        regex(name, value)
        return value
    if value is not None and not isinstance(value, (list, tuple, set)):
        raise TypeError(f"{name}={value!r} must be a list of names or a string")
    found = names(name, value)
    return None if found is None else set(found)


def patterns(name, value, check) -> dict:
    """{regular expression: a value that `check` accepts}; None is an empty one."""
    if not isinstance(value or {}, dict):
        raise TypeError(f"{name}={value!r} must be a dict from regular expressions to values")
    for key, entry in (value or {}).items():
        if not isinstance(key, str):
            raise TypeError(f"{name}: the key {key!r} must be a regular expression")
        regex(name, key)
        check(f"{name}[{key!r}]", entry)
    return value or {}


def layers(name, value) -> list[int] | int | None:
    """The index of a layer, or a list of them."""
    several = list(value) if isinstance(value, (list, tuple, range)) else None
    for index in [] if value is None else [value] if several is None else several:
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise TypeError(f"{name}={value!r} must be the index of a layer, counted from 0, or a list of them")
    return value if several is None else several
