"""The loss plot of a run."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import need
from ..text import safe
from ..whole_files import write_whole


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

    def evaluations(self) -> list[tuple[int, float]]:
        """[(step, loss)] of the held-out loss."""
        ends = [(0, self.before), (len(self.losses), self.after)]
        return list(self.held_out) or [end for end in ends if end[1] is not None]


def plot_losses(curves: list[Curve], path: Path) -> None:
    """Writes a PNG: training loss over steps as a line, held-out loss as marks, joined if there are more than two.

    Every line has its own colour. A $ sign in a curve's name is escaped, so that matplotlib renders no formula.
    """
    png = io.BytesIO()
    loss_figure(curves).savefig(png, format="png")
    write_whole(path, png.getvalue())


def loss_figure(curves: list[Curve]):
    """The matplotlib Figure that `plot_losses` writes."""
    need("matplotlib")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, curve in enumerate(curves):
        name = "" if len(curves) == 1 else f": {_shown(curve.name)}"
        steps = range(1, len(curve.losses) + 1)
        axes.plot(steps, curve.losses, linewidth=1.2, color=f"C{2 * number}", label=f"training{name}")
        if marks := curve.evaluations():
            style = "o" if len(marks) <= 2 else "o-"
            axes.plot(*zip(*marks, strict=True), style, color=f"C{2 * number + 1}", label=f"held out{name}")
        best = dict(marks).get(curve.best_step)
        if best is not None:
            axes.plot([curve.best_step], [best], "*", markersize=14, color=f"C{2 * number + 1}", label=f"kept{name}")
    axes.set_title(f"Loss of {' and '.join(_shown(curve.name) for curve in curves)}", wrap=True)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss per answer token (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _shown(name: str) -> str:
    name = safe(name).replace("$", r"\$") or "run"
    return name if len(name) <= 60 else f"{name[:60]}..."
