"""Prints tables with rich."""

from collections.abc import Sequence

from ..finetune.text import safe

WIDTH = 116  # of a table that is not printed on a terminal


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = (), title=None) -> None:
    """A table; right: the names of the columns that are aligned to the right. Control characters are escaped."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(Text(safe(name)), justify="right" if name in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(safe(cell)) for cell in row))
    console.print(table)
