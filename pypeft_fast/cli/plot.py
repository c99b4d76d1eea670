"""The loss plot of a run."""

import io
from dataclasses import dataclass
from pathlib import Path

from .errors import need
from .terminal import safe
from .whole_files import write_whole


@dataclass(frozen=True)
class Curve:
    """One run: the training loss of each step, and the held-out loss before and after, if there is a held-out set."""

    name: str
    losses: list[float]
    before: float | None = None
    after: float | None = None


def plot_losses(curves: list[Curve], path: Path) -> None:
    """A PNG: training loss over steps as a line, held-out loss as two marks at its ends, a colour a run.

    A curve's name is shown as it is: no formula, though it holds $ signs.
    """
    need("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        name = safe(curve.name).replace("$", r"\$") or "run"
        (line,) = axes.plot(range(1, len(curve.losses) + 1), curve.losses, linewidth=1.2, label=f"training: {name}")
        if curve.before is not None and curve.after is not None:
            axes.plot(
                [0, len(curve.losses)],
                [curve.before, curve.after],
                "o--",
                linewidth=0.8,
                color=line.get_color(),
                label=f"held out: {name}",
            )
    axes.set_xlabel("step")
    axes.set_ylabel("loss per answer token (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    png = io.BytesIO()
    figure.savefig(png, format="png")
    write_whole(path, png.getvalue())
