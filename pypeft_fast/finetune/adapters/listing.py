"""Lists the adapters below folders, from their files alone."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..errors import UserError
from .config_values import config_faults
from .files import CONFIG, WEIGHTS, Adapter, fault, read_adapter, settings_of


@dataclass(frozen=True)
class Listed:
    """An adapter's folder, the time of its weights, and what its files hold, or the fault of the files."""

    folder: Path
    saved: datetime | None
    adapter: Adapter | None
    fault: str | None

    @property
    def method(self) -> str | None:
        if self.adapter is None:
            return None
        return "DORA" if self.adapter.config.get("use_dora") else self.adapter.config["peft_type"]

    @property
    def targets(self) -> str:
        """The targets in few characters: all-linear, if the run was given it; else the names, the end that they share
        once."""
        targets = self.adapter.config.get("target_modules") if self.adapter else None
        if self.adapter and settings_of(self.folder).get("target_modules") == "all-linear":
            return "all-linear"
        if not isinstance(targets, list):
            return str(targets or "-")
        names = sorted(map(str, targets))
        head, end = zip(*(name.rpartition("_")[::2] for name in names), strict=True) if names else ((), ())
        if len(names) > 2 and len(set(end)) == 1 and all(head):
            return f"{{{','.join(head)}}}_{end[0]}"
        return ", ".join(names)

    def record(self) -> dict:
        """The same as plain data."""
        config = self.adapter.config if self.adapter else {}
        targets = config.get("target_modules")
        return {
            "folder": str(self.folder),
            "method": self.method,
            "base": config.get("base_model_name_or_path"),
            "rank": config.get("r"),
            "targets": sorted(map(str, targets)) if isinstance(targets, list) else targets,
            "parameters": self.adapter.parameters if self.adapter else None,
            "bytes": self.adapter.bytes if self.adapter else None,
            "saved": self.saved.isoformat(timespec="seconds") if self.saved else None,
            "fault": self.fault,
        }


def adapters_below(folders: list[Path]) -> list[Listed]:
    """The adapters in the folders and below, by path; checkpoints inside a folder are left out.

    UserError if one of the folders does not exist.
    """
    found: dict[Path, Listed] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; give folders that hold adapters")
        for config in sorted(folder.rglob(CONFIG)):
            inside = config.parent.relative_to(folder).parts
            if not any(part.startswith("checkpoint-") for part in inside):
                found.setdefault(config.parent.resolve(), _listed(config.parent))
    return list(found.values())


def _listed(folder: Path) -> Listed:
    weights = folder / WEIGHTS
    saved = datetime.fromtimestamp(weights.stat().st_mtime).astimezone() if weights.is_file() else None
    if trouble := fault(folder):
        return Listed(folder, saved, None, trouble)
    adapter = read_adapter(folder)
    return Listed(folder, saved, adapter, "; ".join(config_faults(adapter.config)) or None)
