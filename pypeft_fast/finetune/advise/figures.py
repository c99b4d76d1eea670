"""The pictures of the report, drawn with matplotlib, as SVG."""

import base64
import io
import math
from collections.abc import Sequence

from ..plan.make import Row
from ..report.fonts import drawable, fonts_for
from ..sizes import written
from .energy import LayerEnergy
from .rule import ERRORS
from .shares import Share, by_module
from .trial import Trial

ENERGY, PARAMETERS, OTHER = "#2f6db5", "#b9c3cf", "#d9822b"
PARTS = {"weights": "#5b7083", "activations": "#8fb3d9", "optimizer": "#d9b38c", "adapter": "#2f6db5"}
PARTS |= {"process": "#c9ced4", "loading": "#e3e6e9"}
LETTERS = {"font.size": 10, "svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False}


def as_uri(figure) -> str:
    """The figure as the address of an image that holds it."""
    import matplotlib

    svg = io.BytesIO()
    with matplotlib.rc_context(LETTERS):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()


def energy_figure(modules: dict[str, Share]):
    """Bars of each module type: its share of the gradient energy, with the standard error, above its share of the
    parameters."""
    names = [drawable(name) for name in modules]
    figure, axes = _axes(7.2, 0.6 + 0.52 * len(modules), names)
    shares, places = list(modules.values()), range(len(modules))
    errors = [100 * (its.error or 0.0) for its in shares]
    upper, lower = [i - 0.19 for i in places], [i + 0.19 for i in places]
    axes.barh(upper, [100 * its.energy for its in shares], 0.36, xerr=errors, color=ENERGY, label="gradient energy",
              error_kw={"elinewidth": 1.2, "capsize": 2.5, "ecolor": "#14365e"})  # fmt: skip
    axes.barh(lower, [100 * its.cost for its in shares], 0.36, color=PARAMETERS, label="trained parameters")
    axes.set_yticks(list(places), names)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("share of all linear layers, %")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, loc="lower right")
    return figure


def layer_figure(layers: list[LayerEnergy]):
    """A map of all blocks and module types: the energy of each layer per parameter, relative to the mean, in a
    logarithmic colour scale. None if no layer is in a block."""
    from matplotlib.colors import LogNorm

    inside = [its for its in layers if its.block is not None]
    if not inside:
        return None
    mean = sum(its.energy for its in layers) / sum(its.parameters for its in layers)
    modules = {its.module: name for name in by_module(inside) for its in inside if _is(its, name)}
    rows, blocks = list(dict.fromkeys(modules)), max(its.block for its in inside) + 1
    grid = [[math.nan] * blocks for _ in rows]
    for its in inside:
        grid[rows.index(its.module)][its.block] = its.energy / its.parameters / mean
    known = [value for row in grid for value in row if value > 0]
    names = [drawable(modules[row]) for row in rows]
    figure, axes = _axes(7.2, 0.9 + 0.34 * len(rows), names)
    low, high = max(min(known), max(known) / 1e4), max(known)
    image = axes.imshow(grid, aspect="auto", cmap="viridis", norm=LogNorm(low, high if high > low else 2 * low))
    axes.set_yticks(range(len(rows)), names)
    axes.set_xlabel("block")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, label="energy per parameter\n(1: mean)", fraction=0.05, pad=0.02)
    return figure


def _is(layer: LayerEnergy, name: str) -> bool:
    return layer.module == name or layer.module.endswith(f".{name}")


def memory_figure(rows: dict[str, Row], room: int):
    """Bars of each candidate's peak memory, by its parts, with the memory of the device as a line."""
    figure, axes = _axes(7.2, 0.9 + 0.42 * len(rows))
    unit, name = (1024**3, "GiB") if max(row.memory[0].peak for row in rows.values()) > 1024**3 else (1024**2, "MiB")
    left = [0.0] * len(rows)
    for part, colour in PARTS.items():
        sizes = [getattr(row.memory[0], part) / unit for row in rows.values()]
        if any(sizes):
            axes.barh(range(len(rows)), sizes, 0.6, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
    if room <= 1.6 * max(left) * unit:
        axes.axvline(room / unit, color="#b3261e", linewidth=1.4, label=f"memory: {written(room)}")
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlabel(f"predicted peak memory, {name}")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def trial_figure(trial: Trial):
    """Left: the training loss of each step. Right: how much higher the loss of the second candidate is than that of the
    best, on each held-out example and for all, with two standard errors."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(LETTERS):
        figure = Figure(figsize=(7.2, 3.0), layout="constrained")
        steps, examples = figure.subplots(1, 2, width_ratios=(3, 2))
    for its, colour in zip(trial.tried, (ENERGY, OTHER), strict=True):
        steps.plot(range(1, len(its.training) + 1), its.training, color=colour, linewidth=1.4, label=its.targets)
    steps.set_xlabel("step")
    steps.set_ylabel("training loss, nats per token")
    steps.xaxis.get_major_locator().set_params(integer=True)
    steps.legend(frameon=False)
    best, second = trial.ranked()[:2]
    lead, error = trial.lead()
    pairs = zip(second.held_out, best.held_out, best.tokens, strict=True)
    differences = sorted((b - a) / tokens for b, a, tokens in pairs)
    examples.plot(differences, range(1, len(differences) + 1), "o", color=PARAMETERS, markersize=5, label="an example")
    examples.errorbar([lead], [0], xerr=[ERRORS * (error or 0.0)], fmt="D", color="#14365e", capsize=4, label="all")
    examples.axvline(0, color="#5b7083", linewidth=1)
    examples.set_yticks([])
    examples.spines["left"].set_visible(False)
    examples.set_xlabel(f"held-out loss: {second.targets} minus {best.targets}")
    examples.legend(frameon=False, fontsize="small")
    for axes in (steps, examples):
        axes.grid(alpha=0.3)
    return figure


def _axes(width: float, height: float, names: Sequence[str] = ()):
    """(a figure, its axes), whose fonts have the characters of these names."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(LETTERS), fonts_for("".join(names)):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
    axes.set_axisbelow(True)
    return figure, axes
