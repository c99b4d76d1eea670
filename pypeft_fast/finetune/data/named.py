"""Data files by the names of their adapters: NAME=FILE, where one run trains several."""

import re
from pathlib import Path

from ..errors import UserError
from ..text import cut, quoted

BASE = "__base__"  # of a row without an adapter
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
        check_name(name, f"`{argument}` {cut(spec)}")
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
    so."""
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", name)  # a folder of the run itself
    if re.fullmatch(r"\w[\w-]*", name) and name != BASE and not is_checkpoint and len(name) <= LONGEST:
        return
    raise UserError(
        f"{what}: {quoted(name)} cannot name an adapter and its folder; give a name of letters, digits, _ and -, at "
        f"most {LONGEST} characters, and not {BASE} or checkpoint-NUMBER"
    )
