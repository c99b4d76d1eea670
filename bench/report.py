"""Writes a run's numbers as JSON, Markdown and a plot."""

import json
from pathlib import Path

from .targets import markdown

RESULTS = Path(__file__).parent / "results"
TARGET_HEADER = ("what", "measured", "target", "verdict")


def headline(machine):
    return ", ".join(f"{key} {value}" for key, value in machine.items())


def write(folder, name, data, tables):
    """NAME.json and NAME.md: the machine, then each (header, rows) table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    parts = [headline(data["machine"]), *(markdown(*table) for table in tables)]
    (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def bars(path, labels, series, ylabel):
    """One group of bars for each label, one bar for each name in series {name: [value or None]}."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(max(6, 0.55 * len(labels)), 4.5), layout="constrained")
    width = 0.8 / len(series)
    for i, (name, values) in enumerate(series.items()):
        heights = [float("nan") if v is None else v for v in values]
        axes.bar([at + i * width for at in range(len(labels))], heights, width, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks([at + 0.4 - width / 2 for at in range(len(labels))], labels, rotation=30, ha="right", fontsize=8)
    axes.set_ylabel(ylabel)
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
