"""A complete run, loaded from its folder, for pictures and pages that are missing there."""

import dataclasses
from pathlib import Path

import pypeft_fast

from .. import json_text
from ..base_models import load_base
from ..data.records import Example
from ..data.tokens import Collator
from ..errors import as_user_error
from ..library_errors import LIBRARY_ERRORS
from ..report.plot import Curve, plot_losses
from .ready import Ready, make_data
from .ready_many import ReadyMany, make_ready_many
from .run_folder import METRICS_FILE, PLOT_FILE
from .settings import Settings


def metrics_in(folder: Path) -> dict:
    """What metrics.json of an adapter's folder holds. UserError if the file cannot be read."""
    return json_text.read_object(folder / METRICS_FILE, str(folder / METRICS_FILE))


def plot(output: Path, folders: list[Path]) -> None:
    """Writes loss.png of the adapters in these folders into output."""
    plot_losses([Curve.of(folder.resolve().name, metrics_in(folder)) for folder in folders], output / PLOT_FILE)


def load_finished(settings: Settings, examples: list[Example], held_out: list[Example] | None, output: Path) -> Ready:
    """`make_ready` with the adapter that the run has written into output. UserError as from `load_base` and `prepare`,
    or if the adapter cannot be loaded."""
    base, tokenizer = load_base(settings.model, settings.dtype, settings.quantize)
    data = make_data(base, tokenizer, settings, examples, held_out)
    with as_user_error(f"the adapter in {output} cannot be loaded", LIBRARY_ERRORS):
        model = pypeft_fast.PeftModel.from_pretrained(base, output)
    return Ready(model, data, Collator.of(tokenizer), tokenizer)


def load_finished_many(
    settings: dict[str, Settings], examples: dict[str, list[Example]], held_out: dict[str, list[Example]], output: Path
) -> ReadyMany:
    """`make_ready_many` with the adapters that the run has written into output/NAME."""
    from_files = {name: dataclasses.replace(its, adapter=str(output / name)) for name, its in settings.items()}
    return make_ready_many(from_files, examples, held_out)
