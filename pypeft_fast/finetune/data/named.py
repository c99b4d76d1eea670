"""Data files by the names of their adapters: NAME=FILE, where one run trains several."""

import re
from collections.abc import Iterable
from pathlib import Path

from ..calm import calm_libraries
from ..errors import UserError
from ..text import cut, quoted

BASE = "__base__"  # of a row without an adapter
DEFAULT = "default"  # of an adapter that is not in a folder within another
LONGEST = 100  # characters of a name, which a file system has room for in any script


def named_data(specs: list[str], argument: str = "data") -> dict[str | None, str]:
    """{name: data} of NAME=FILE each, or {None: data} of one that has no name; `argument` is what errors call it.

    A text that is the path of a file has no name, though it holds a =.

    Raises UserError: a name that is no folder's or that is taken, no data after the =, several of which one has no
    name.
    """
    found: dict[str | None, str] = {}
    for spec in specs:
        name, equals, data = spec.partition("=")
        if not equals or Path(spec).is_file():
            if len(specs) > 1:
                raise UserError(
                    f"`{argument}` {cut(spec)} has no name, and `{argument}` is given {len(specs)} times: each of them "
                    "trains an adapter of its own, so give each NAME=FILE"
                )
            return {None: spec}
        check_new_name(name, found, f"`{argument}` {cut(spec)}")
        if name in found:
            raise UserError(
                f"`{argument}` {cut(spec)}: the name {quoted(name)} is taken by {cut(found[name])}; give it another "
                "name, or put the examples of one adapter into one file"
            )
        if not data:
            raise UserError(f"`{argument}` {cut(spec)} names no data; give {name}=FILE")
        found[name] = data
    return found


def check_name(name: str, what: str) -> None:
    """UserError, which begins with what has the name, unless a folder within another, and an adapter, may be called
    so. Imports PEFT."""
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", name)  # a folder of the run itself
    is_text = re.fullmatch(r"\w[\w-]*", name) and len(name) <= LONGEST
    if not is_text or name in (BASE, DEFAULT) or is_checkpoint:
        raise UserError(
            f"{what}: {quoted(name)} cannot name an adapter and its folder; give a name of letters, digits, _ and -, "
            f"at most {LONGEST} characters, and not {BASE}, {DEFAULT} or checkpoint-NUMBER"
        )
    calm_libraries()
    from ...model.files import check_adapter_name  # imports PEFT, which takes seconds

    try:
        check_adapter_name(name)
    except ValueError as error:
        raise UserError(f"{what}: {quoted(name)} cannot name an adapter: {error}") from error


def check_new_name(name: str, taken: Iterable[str], what: str) -> None:
    """UserError as from `check_name`, and for a name that differs from one of `taken` only by case: on some file
    systems both have the same folder."""
    check_name(name, what)
    if same := next((other for other in taken if other != name and other.casefold() == name.casefold()), None):
        raise UserError(
            f"{what}: {quoted(name)} and {quoted(same)} differ only by case, and some file systems have one folder "
            "for both; give one of them another name"
        )
