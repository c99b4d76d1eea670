"""Writes the results of a benchmark as JSON, Markdown and a plot."""

import json
import sys
from pathlib import Path

from .targets import markdown

RESULTS = Path(__file__).parents[1] / "results"  # tracked by git; only `make bench-publish` writes measurements into it
OUTPUT = Path("out/bench")
TARGET_HEADER = ("what", "measured", "target", "verdict")


def headline(machine):
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def doing(text):
    """Says on stderr what is measured now, since minutes can pass before the next row."""
    print(text, file=sys.stderr, flush=True)


def aligned(header, labels):
    """A function that formats a row as a line, for tables that are printed during the measurement.

    The first column is left-aligned and as wide as the widest label. The other columns are right-aligned and as wide
    as their names and a number.
    """
    first, *others = max(map(len, (header[0], *labels))), *(max(7, len(name)) for name in header[1:])

    def line(row):
        label, *cells = map(str, row)
        return "  ".join([label.ljust(first), *(c.rjust(w) for c, w in zip(cells, others, strict=True))])

    return line


def verdicts(targets):
    """The targets in columns, one per line."""
    widths = [max(map(len, column)) for column in zip(*targets, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in targets)


def write(folder, name, data, tables):
    """Writes NAME.json, and NAME.md with the machine and each (header, rows) table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    parts = [headline(data["machine"]), *(markdown(*table) for table in tables)]
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def bars(path, panels, ylabel):
    """Draws a bar plot of panels {title: (labels, series)}, side by side, with one legend and one scale.

    series: {name: [value or None]}. Each panel has a group of bars for every label, with one bar for every name. In the
    plot "ours" is called pypeft_fast.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    widths = [len(labels) for labels, _ in panels.values()]
    size = max(7, 0.5 * sum(widths) + 1.5), 4.5
    figure, row = pyplot.subplots(
        1, len(panels), figsize=size, sharey=True, squeeze=False, width_ratios=widths, layout="constrained"
    )
    for axes, (title, (labels, series)) in zip(row[0], panels.items(), strict=True):
        width = 0.8 / len(series)
        for i, (name, values) in enumerate(series.items()):
            heights = [float("nan") if v is None else v for v in values]
            shown = name.replace("ours", "pypeft_fast")
            axes.bar([at + i * width for at in range(len(labels))], heights, width, label=shown)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_xticks(
            [at + 0.4 - width / 2 for at in range(len(labels))], labels, rotation=35, ha="right", fontsize=8
        )
        axes.set_title(title, fontsize=10)
    row[0][0].set_ylabel(ylabel)
    row[0][-1].legend(fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def by_dtype(results, names):
    """Panels for `bars` of times / the frozen layer's time: one panel per pair of dtypes.

    The shapes are sorted from our best ratio to our worst; a label has the rank if it is not 16.
    """
    panels = {}
    for dtypes in dict.fromkeys(r["case"]["dtypes"] for r in results):
        its = [r for r in results if r["case"]["dtypes"] == dtypes]
        its.sort(key=lambda r: r["seconds"].get("ours", r["seconds"]["frozen"]) / r["seconds"]["frozen"])
        labels = ["{M}x{K}x{N}".format(**r["case"]) + _rank(r["case"]["r"]) for r in its]
        over = {
            n: [r["seconds"][n] / r["seconds"]["frozen"] if n in r["seconds"] else None for r in its] for n in names
        }
        panels[dtypes] = labels, over
    return panels


def _rank(r):
    return "" if r == 16 else f" r={r}"
