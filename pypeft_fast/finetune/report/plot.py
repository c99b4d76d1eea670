"""The loss plot of a run."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import need
from ..text import safe
from ..whole_files import write_whole
from .fonts import drawable, fonts_for

NAMED = 5  # as many runs as a title has room for


@dataclass(frozen=True)
class Curve:
    """One run: the training loss of each step, and the held-out loss before and after, if there is held-out data.

    held_out: [(step, loss)] of all evaluations; if empty, the evaluations before and after are used. best_step: the
    step of the adapter that was kept, if the run chose one.
    """

    name: str
    losses: list[float]
    before: float | None = None
    after: float | None = None
    held_out: Sequence[tuple[int, float]] = ()
    best_step: int | None = None

    @classmethod
    def of(cls, name: str, metrics: dict) -> "Curve":
        """The curve of a run whose metrics.json this is."""
        losses = [loss for _, loss in metrics["loss_history"]["train"]]
        ends, evaluated = (metrics["eval_loss_before"], metrics["eval_loss_after"]), metrics["loss_history"]["held_out"]
        return cls(name, losses, *ends, evaluated, metrics["best_step"])

    def evaluations(self) -> list[tuple[int, float]]:
        """[(step, loss)] of the held-out loss."""
        ends = [(0, self.before), (len(self.losses), self.after)]
        return list(self.held_out) or [end for end in ends if end[1] is not None]


def plot_losses(curves: list[Curve], path: Path) -> None:
    """Writes a PNG: training loss over steps as a line, held-out loss as marks, joined if there are more than two.

    Every line has its own colour, and the lines of one run have the same hue. A $ sign in a curve's name is escaped, so
    that matplotlib renders no formula; so is a character that no installed font has.
    """
    png = io.BytesIO()
    loss_figure(curves).savefig(png, format="png")
    write_whole(path, png.getvalue())


def loss_figure(curves: list[Curve], as_text: bool = False):
    """The matplotlib Figure that `plot_losses` writes. as_text: another program draws the names, and has the fonts."""
    need("matplotlib")
    names = [_shown(curve.name) for curve in curves]
    if not as_text:
        names = [drawable(name) for name in names]
    with fonts_for("".join(names)):
        return _drawn(curves, names)


def _drawn(curves: list[Curve], names: list[str]):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for (line, mark), curve, its in zip(_colours(len(curves)), curves, names, strict=True):
        name = "" if len(curves) == 1 else f": {its}"
        steps = range(1, len(curve.losses) + 1)
        axes.plot(steps, curve.losses, linewidth=1.2, color=line, label=f"training{name}")
        if marks := curve.evaluations():
            style = "o" if len(marks) <= 2 else "o-"
            axes.plot(*zip(*marks, strict=True), style, color=mark, label=f"held out{name}")
        best = dict(marks).get(curve.best_step)
        if best is not None:
            axes.plot([curve.best_step], [best], "*", markersize=14, color=mark, label=f"kept{name}")
    axes.set_title(f"Loss of {' and '.join(names) if len(names) <= NAMED else f'{len(names)} adapters'}", wrap=True)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss per answer token (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if len(curves) <= NAMED:
        axes.legend()
    else:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="xx-small")
    return figure


def _colours(count: int) -> list[tuple]:
    """(the line's, the marks') of each of so many runs: a hue for each run, the marks darker; two hues for one run."""
    if count == 1:
        return [("C0", "C1")]
    from matplotlib import colormaps
    from matplotlib.colors import hsv_to_rgb

    if count <= NAMED:
        pairs = colormaps["tab20"].colors  # dark and light in turn
        return [(pairs[2 * i + 1], pairs[2 * i]) for i in range(count)]
    return [tuple(tuple(hsv_to_rgb((i / count, 0.8, value))) for value in (0.9, 0.55)) for i in range(count)]


def _shown(name: str) -> str:
    name = safe(name).replace("$", r"\$") or "run"
    return name if len(name) <= 60 else f"{name[:60]}..."
