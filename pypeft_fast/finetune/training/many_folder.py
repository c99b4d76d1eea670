"""The folder of a run of several adapters: in it a folder of each, laid out as that of a run of one adapter."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import UserError
from ..whole_files import write_json
from . import run_folder
from .settings import Settings


def open_many(output: Path, names: Iterable[str], overwrite: bool) -> None:
    """Makes the folders for a new run; removes nothing.

    Raises UserError if one cannot be written, if it holds an earlier run and overwrite is false, or if output itself
    holds an adapter.
    """
    if (own := next(output.glob("adapter_*"), None)) is not None:
        raise UserError(
            f"`output` {output} holds {own.name}, of a run of one adapter, beside which folders of others would be "
            "mistaken for its own; name another folder"
        )
    run_folder.open_new(output, overwrite)
    for name in names:
        run_folder.open_new(output / name, overwrite)


@contextlib.contextmanager
def alone_in_many(output: Path, names: Iterable[str]) -> Iterator[None]:
    """Inside of it no other process writes one of these folders; UserError if one does already."""
    with contextlib.ExitStack() as stack:
        for folder in (output, *(output / name for name in names)):
            stack.enter_context(run_folder.alone(folder))
        yield


def begin_many(output: Path, settings: dict[str, Settings]) -> dict[str, str]:
    """Removes the metrics and checkpoints of earlier runs and writes the settings: of each adapter into its folder, of
    all into output. Returns what stays, as `run_folder.begin` does."""
    left = {}
    for name, its in settings.items():
        left |= {f"{name}/{file}": why for file, why in run_folder.begin(output / name, its).items()}
    values = {name: dataclasses.asdict(its) for name, its in settings.items()}
    write_json(output / run_folder.SETTINGS_FILE, {"adapters": values})
    return left
