"""The folder of a run of several adapters: in it a folder of each, laid out as that of a run of one adapter."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from .. import json_text
from ..errors import UserError, as_user_error
from ..text import cut
from ..whole_files import write_json
from . import checkpoints, many_checkpoints, run_folder
from .many_checkpoints import Saved
from .settings import Settings


def open_many(output: Path, names: Iterable[str], overwrite: bool) -> None:
    """Checks the folders for a new run; makes and removes nothing.

    Raises UserError if one cannot be read, if it holds an earlier run and overwrite is false, or if output itself
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


def begin_many(
    output: Path, settings: dict[str, Settings], options: dict, read: dict[str, dict[str, str]]
) -> dict[str, str]:
    """Removes the metrics and checkpoints of earlier runs and writes the settings: of each adapter into its folder, of
    all into output. Returns what stays, as `run_folder.begin` does.

    options: all options of the command, for a config file that repeats the run. read: `hashes.hashes_of` each adapter,
    by name.
    """
    _remove_scratch(output)
    with as_user_error(f"{output / run_folder.REPORT_FILE} cannot be deleted", (OSError,)):
        (output / run_folder.REPORT_FILE).unlink(missing_ok=True)
    left = checkpoints.remove(output)
    alone = {name: options[name] for name in run_folder.OPTIONS if name in options} | {"by_product": False}
    for name, its in settings.items():
        left_here = run_folder.begin(output / name, its, alone | {"output": str(output / name)}, read[name])
        left |= {f"{name}/{file}": why for file, why in left_here.items()}
    values = {name: dataclasses.asdict(its) for name, its in settings.items()}
    write_json(output / run_folder.SETTINGS_FILE, options | {"adapters": values})
    return left


def resumption_many(
    output: Path, settings: dict[str, Settings], read: dict[str, dict[str, str]]
) -> tuple[Saved | None, list[str]]:
    """(the checkpoint that `resume` goes on from, the faults of newer ones); (None, []) if the run is complete.

    read: `hashes.hashes_of` each adapter, by name. Raises UserError if the folder has no run, if its run has other
    adapters or other settings or has read other data, or if no checkpoint is whole.
    """
    path = output / run_folder.SETTINGS_FILE
    none = f"`resume`: no complete checkpoint in {output}; start without `resume`"
    if not path.is_file():
        raise UserError(none)
    saved = json_text.read_object(path, f"`resume`: {path}").get("adapters")
    if not isinstance(saved, dict):
        raise UserError(f"`resume`: {path} is not of a run of several adapters; start again with `overwrite`")
    if sorted(saved) != sorted(settings):
        theirs, ours = (cut(", ".join(sorted(names))) for names in (saved, settings))
        raise UserError(f"`resume`: the run to go on with has the adapters {theirs}, and now there are {ours}")
    for name, its in settings.items():
        file = output / name / run_folder.SETTINGS_FILE
        run_folder.check_settings(file, dataclasses.asdict(its), read[name], name)
    if all(is_complete(output, name, its) for name, its in settings.items()):
        return None, []
    with as_user_error(f"`output` {output} cannot be read", (OSError,)):
        found, damaged = many_checkpoints.newest(output, settings, lambda n: is_complete(output, n, settings[n]))
    if found is None and damaged:
        raise UserError(f"`resume`: {'; '.join(damaged)}: no whole checkpoint is left; start again with `overwrite`")
    if found is None:
        raise UserError(none)
    return found, damaged


def can_be_resumed_many(output: Path, settings: dict[str, Settings], read: dict[str, dict[str, str]]) -> bool:
    """Whether `resume` with the same options would find a checkpoint."""
    try:
        return resumption_many(output, settings, read)[0] is not None
    except UserError:
        return False


def is_complete(output: Path, name: str, settings: Settings) -> bool:
    """Whether the folder of this adapter has the result of a run with these settings."""
    return run_folder.steps_of_complete(output / name, dataclasses.asdict(settings)) is not None


def _remove_scratch(output: Path) -> None:
    """Deletes what killed writings of checkpoints have left."""
    for path in output.glob(".checkpoint-*.*"):
        if path.is_dir() and not path.is_symlink() and checkpoints.foreign_file(path) is None:
            shutil.rmtree(path, ignore_errors=True)
