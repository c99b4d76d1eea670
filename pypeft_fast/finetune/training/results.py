"""What a run leaves of an adapter: its held-out loss before and after, its files, README.md and numbers."""

import contextlib
import math
import shutil
from pathlib import Path

from safetensors import SafetensorError

from ...model.files.saving import saving
from ..base_models import public_name
from ..chat_template import FILE as TEMPLATE
from ..data.tokens import Collator
from ..errors import UserError, as_user_error
from ..held_out import held_out_loss
from ..report.card import card, is_card
from ..report.plot import Curve
from ..whole_files import write_whole
from .metrics import metrics_of
from .prepare import Data
from .settings import Settings
from .trainer import TimedTrainer, check_finite

DEFAULT = "default"  # PEFT's name of an adapter that is the only one


def loss_before(model, data: Data, collator: Collator, settings: Settings) -> float | None:
    """The held-out loss of the base model, or of the adapter that training goes on with. None: nothing is held out.

    UserError if it is NaN or infinite.
    """
    with contextlib.nullcontext() if settings.adapter else model.disable_adapter():
        before = held_out_loss(model, data.held_out, collator, settings.batch_size)
    if before is not None and not math.isfinite(before):
        what = f"`adapter` {settings.adapter}" if settings.adapter else f"`model` {settings.model}"
        raise UserError(f"the loss before training is already {before}: {what} is damaged; get it again")
    return before


def write_results(
    trainer: TimedTrainer, data: Data, settings: Settings, output: Path, before: float | None, name: str = DEFAULT
) -> tuple[dict, Curve]:
    """Writes the active adapter, which the model calls `name`, its chat template and its README.md.

    Returns what metrics.json is to hold, and the run as a curve of the loss plot. Raises UserError, and writes nothing,
    if a value of the adapter or its loss is NaN or infinite.
    """
    model = trainer.model
    after = held_out_loss(model, data.held_out, trainer.data_collator, settings.batch_size)
    check_finite("the loss on held-out data", after)
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    check_finite("the sum of the adapter's values", sum(float(p.sum()) for p in trained))
    metrics = metrics_of(trainer, data, settings, before, after)
    readme = output / "README.md"
    theirs = None if is_card(readme) else readme.read_bytes()
    with as_user_error(f"the adapter cannot be written to {output}", (OSError, RuntimeError, SafetensorError)):
        save_portable(model, output, public_name(settings.model), name)
    _write_template(output / TEMPLATE, data.chat_template)
    if theirs is None:
        write_whole(readme, card(metrics, output.resolve().name).encode())
    else:
        write_whole(readme, theirs)  # PEFT has added to it
    return metrics, Curve.of(output.resolve().name, metrics)


def _write_template(path: Path, template: str | None) -> None:
    """Writes the template beside the adapter, or deletes that of an earlier run."""
    if template is not None:
        write_whole(path, template.encode())
        return
    with as_user_error(f"{path} cannot be deleted", (OSError,)):
        path.unlink(missing_ok=True)


def save_portable(model, output: Path, base: str, name: str = DEFAULT) -> None:
    """Saves the adapter into this folder, under the base's public name, which is the same on every machine.

    The embeddings were not resized and are left out; PEFT would ask the Hub about that.
    """
    for config in model.peft_config.values():
        config.base_model_name_or_path = base
    if name == DEFAULT:
        model.save_pretrained(output, save_embedding_layers=False)
        return
    # PEFT puts an adapter of another name into a folder of that name.
    with saving(output, {"": model.peft_config[name]}, model.peft_config) as scratch:
        within = scratch / "all"
        model.save_pretrained(within, selected_adapters=[name], save_embedding_layers=False)
        for path in (within / name).iterdir():
            path.rename(scratch / path.name)
        shutil.rmtree(within)
