"""Names in matplotlib's pictures: fonts that have their characters, and escapes of characters that no font has.

matplotlib's own font has no Chinese, Japanese or Korean characters and no emoji; matplotlib draws boxes in their place
and warns of each.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator

PLACEHOLDERS = "Last Resort"  # a font that matplotlib brings: it draws a frame for every character
USUAL = 400  # the weight of a regular font


def drawable(text: str) -> str:
    """The text with each character that no installed font has replaced by its Python escape."""
    lacking = frozenset(text) - _own_characters()
    known = frozenset().union(*(has for _, has in _fonts_with(lacking))) if lacking else frozenset()
    return "".join(c.encode("unicode_escape").decode() if c in lacking - known else c for c in text)


@contextlib.contextmanager
def fonts_for(text: str) -> Iterator[None]:
    """In the block new text of a figure is drawn with matplotlib's fonts and those that have the text's further
    characters."""
    import matplotlib

    usual = matplotlib.rcParams["font.family"]
    further = [name for name, _ in _fonts_with(frozenset(text) - _own_characters())]
    with matplotlib.rc_context({"font.family": [*usual, *further]}):
        yield


@contextlib.contextmanager
def no_warning_of_glyphs() -> Iterator[None]:
    """In the block matplotlib does not warn of characters that its fonts lack: another program draws the text."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def _own_characters() -> frozenset[str]:
    """The characters of the font that matplotlib uses by default."""
    from matplotlib.font_manager import FontProperties, findfont

    return _characters(findfont(FontProperties()))


@functools.lru_cache(maxsize=64)
def _characters(path: str) -> frozenset[str]:
    from matplotlib.font_manager import get_font

    try:
        return frozenset(map(chr, get_font(path).get_charmap()))
    except (OSError, RuntimeError):  # the file is gone, or FreeType cannot read it
        return frozenset()


def _fonts_with(characters: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    """[(name of an installed font, those of these characters that it has)]: each has some that those before lack."""
    from matplotlib.font_manager import fontManager

    found, left = [], characters
    regular_first = sorted(fontManager.ttflist, key=lambda its: (its.style != "normal", its.weight != USUAL, its.name))
    for entry in regular_first if characters else ():
        has = left & _characters(entry.fname) if not entry.name.startswith(PLACEHOLDERS) else frozenset()
        if has:
            found.append((entry.name, has))
            left -= has
        if not left:
            break
    return found
