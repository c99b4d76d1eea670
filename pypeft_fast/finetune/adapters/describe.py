"""Describes an adapter from the files in its folder; no model is loaded."""

from pathlib import Path

from ..errors import UserError
from .contradictions import contradictions
from .files import object_in, read_adapter


def describe(folder: Path) -> dict:
    """{property: value} of an adapter, from its files and from metrics.json in the same folder, if there is one.

    "broken" is a list of the faults that make the adapter useless although its files are complete, or None.

    UserError if there is no such folder, or if a file is not complete.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {'is a file, give the folder' if folder.exists() else 'no such folder'}")
    adapter, (metrics, _) = read_adapter(folder), object_in(folder / "metrics.json")
    config = adapter.config
    targets = config.get("target_modules")
    settings = metrics.get("settings") if isinstance(metrics.get("settings"), dict) else {}
    return {
        "method": "DORA" if config.get("use_dora") else config["peft_type"],
        "base": config.get("base_model_name_or_path"),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "dropout": config.get("lora_dropout"),
        "virtual tokens": config.get("num_virtual_tokens"),
        "targets": sorted(map(str, targets)) if isinstance(targets, list) else targets,
        "parameters": f"{adapter.parameters:,} in {len(adapter.shapes)} tensors, {', '.join(adapter.dtypes)}",
        "size": f"{adapter.bytes / 1e6:.1f} MB",
        "trained over": settings.get("quantize"),
        "data": settings.get("data"),
        "steps": metrics.get("steps"),
        "best step": metrics.get("best_step"),
        "held-out loss": _losses(metrics),
        "broken": contradictions(folder, adapter) or None,
    }


def _losses(metrics: dict) -> str | None:
    before, after = metrics.get("eval_loss_before"), metrics.get("eval_loss_after")
    if not all(isinstance(loss, float) for loss in (before, after)):
        return None
    examples = metrics.get("eval_examples")
    return f"{before:.3f} before, {after:.3f} after, on {examples} example{'s' * (examples != 1)}"
