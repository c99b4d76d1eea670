"""`pypeft-fast inspect`: what an adapter's folder holds, without loading a model."""

import json
from pathlib import Path

from .adapter_files import Adapter, object_in, read_adapter
from .errors import UserError
from .terminal import cut, say

SUMMARY = "what an adapter is: method, base, rank, layers, size, losses"
EXAMPLE = "pypeft-fast inspect my-adapter"
ADVICE = "It reads the folder's files and nothing else: no model is loaded."


def add_arguments(parser) -> None:
    parser.add_argument("adapter", metavar="DIR", help="the adapter's folder")
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(arguments) -> None:
    folder = Path(arguments.adapter)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    metrics, _ = object_in(folder / "metrics.json")
    facts = describe(read_adapter(folder), metrics)
    if arguments.json:
        say(json.dumps(facts, indent=2), keep="\n")
        return
    for name, value in facts.items():
        if value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            say(f"{name:<16} {cut(str(text), 500)}")


def describe(adapter: Adapter, metrics: dict) -> dict:
    """What there is to say of an adapter, from its files and the metrics.json beside them, if it is there."""
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
        "targets": sorted(targets) if isinstance(targets, list) else targets,
        "parameters": f"{adapter.parameters:,} in {len(adapter.shapes)} tensors, {', '.join(adapter.dtypes)}",
        "size": f"{adapter.bytes / 1e6:.1f} MB",
        "data": settings.get("data"),
        "steps": metrics.get("steps"),
        "best step": metrics.get("best_step"),
        "held-out loss": _losses(metrics),
    }


def _losses(metrics: dict) -> str | None:
    before, after = metrics.get("eval_loss_before"), metrics.get("eval_loss_after")
    if not all(isinstance(loss, float) for loss in (before, after)):
        return None
    return f"{before:.3f} before, {after:.3f} after, on {metrics.get('eval_examples')} examples"
