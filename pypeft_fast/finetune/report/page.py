"""report.html: one page about a run, without scripts and without anything from elsewhere."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import need
from ..text import cut, safe
from .fonts import no_warning_of_glyphs
from .plot import Curve, loss_figure

TEMPLATE = Path(__file__).with_name("page.html")
LONGEST = 1500  # characters of a question or an answer


@dataclass(frozen=True)
class Part:
    """One adapter of a run: its metrics.json, its answers, and whether their questions are from the training data."""

    name: str
    metrics: dict
    answers: Sequence = ()
    of_training: bool = False

    @property
    def tiles(self) -> list[tuple[str, str, str]]:
        """[(a caption, a value, a remark)]"""
        its, found = self.metrics, []
        before, after = its["eval_loss_before"], its["eval_loss_after"]
        if before is None:
            found.append(("training loss", f"{its['train_loss_last']:.3f}", "of the last step; nothing was held out"))
        else:
            change = f"{100 * (after - before) / before:+.0f} %, " if before else ""
            of = f"{change}nats per answer token of {its['eval_examples']} examples"
            found.append(("held-out loss, before → after", f"{before:.3f} → {after:.3f}", of))
        best = f"the adapter of step {its['best_step']} is kept" if its["best_step"] else "the last adapter is kept"
        found.append(("steps", f"{its['steps']:,}", best + (", stopped early" if its["stopped_early"] else "")))
        if its["seconds_per_step"]:
            found.append(("seconds a step", f"{its['seconds_per_step']:.3g}", "median"))
        share = 100 * its["trainable_parameters"] / its["total_parameters"]
        found.append(("trained parameters", f"{its['trainable_parameters']:,}", f"{share:.2g} % of the model"))
        found.append(("training examples", f"{its['train_examples']:,}", _shortened(its)))
        found.append(("peak memory", f"{its['peak_memory_bytes'] / 1e9:.2f} GB", "resident set of the process"))
        return found


def page(title: str, parts: list[Part], options: dict, uses: list[tuple[str, str]]) -> str:
    """The page. options: of the run. uses: [(what for, a command or a program)].

    jinja2 escapes every text, and `safe` shows characters that would change the direction of the text.
    """
    need("jinja2")
    import jinja2

    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["shown"] = lambda text: safe(cut(str(text), LONGEST), keep="\n\t")
    shown = {name: value for name, value in options.items() if value is not None and value is not False}
    chart = figure_svg([Curve.of(part.name, part.metrics) for part in parts])
    template = made.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title, parts=parts, options=shown, uses=uses, chart=chart)


def figure_svg(curves: list[Curve]) -> str:
    """The loss plot as an SVG element, whose text is text."""
    import matplotlib

    figure, svg = loss_figure(curves, as_text=True), io.StringIO()
    figure.axes[0].set_title("")
    options = {"svg.fonttype": "none", "svg.hashsalt": "pypeft_fast", "font.family": "sans-serif"}
    with matplotlib.rc_context(options), no_warning_of_glyphs():
        figure.savefig(svg, format="svg", metadata={"Date": None}, transparent=True)
    text = svg.getvalue()
    return text[text.index("<svg") :]


def _shortened(metrics: dict) -> str:
    parts = [f"{metrics[f'{kind}_examples']} {word}" for kind, word in (("cut", "cut"), ("dropped", "left out"))]
    return ", ".join(part for part in parts if not part.startswith("0 ")) or "none cut"
