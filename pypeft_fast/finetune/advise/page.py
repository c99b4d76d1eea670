"""The report: one HTML file that loads nothing from elsewhere."""

import platform
from importlib.metadata import version
from pathlib import Path

from ..sizes import written
from ..text import safe
from . import figures
from .evidence import CONFLICTS, FINDINGS, against
from .lines import in_lines, peft_config, train_command
from .make import Advice, plan_rows
from .rule import RULES, percent
from .shares import by_block, by_module

TEMPLATE = Path(__file__).with_name("page.html")
VERSIONS = ("pypeft-fast", "torch", "transformers", "peft")


def page(advice: Advice) -> str:
    """The report as HTML. All text that comes from names of models, data and layers is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"size": written, "percent": percent, "clean": safe}
    rows, modules, blocks = plan_rows(advice.plan), by_module(advice.layers), by_block(advice.layers)
    authors = {its.key: its.authors for its in FINDINGS}
    layer_map = figures.layer_figure(advice.layers)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        advice=advice,
        settings=advice.wanted.settings,
        command=safe(in_lines(train_command(advice)), keep="\n"),
        config=peft_config(advice),
        rows=rows,
        modules=modules,
        top=sorted(blocks.items(), key=lambda pair: -pair[1].energy)[:5],
        findings=FINDINGS,
        conflicts=CONFLICTS,
        others={its.key: [authors[key] for key in against(its.key)] for its in FINDINGS},
        rules=RULES,
        room=advice.wanted.room,
        lead=None if advice.trial is None else advice.trial.lead(),
        pictures={
            "energy": figures.as_uri(figures.energy_figure(modules)),
            "layers": None if layer_map is None else figures.as_uri(layer_map),
            "memory": figures.as_uri(figures.memory_figure(rows, advice.wanted.room)),
            "trial": None if advice.trial is None else figures.as_uri(figures.trial_figure(advice.trial)),
        },
        versions=", ".join(f"{name} {version(name)}" for name in VERSIONS),
        python=platform.python_version(),
    )
