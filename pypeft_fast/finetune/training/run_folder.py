"""The output folder of a run: checks, the lock, files of an earlier run, and the checkpoint to resume from."""

import contextlib
import dataclasses
import errno
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .. import json_text
from ..adapters.files import CONFIG, WEIGHTS, fault
from ..chat_template import FILE as TEMPLATE
from ..errors import UserError, as_user_error
from ..text import quoted
from ..whole_files import write_json
from . import checkpoints, event_files, hashes

SETTINGS_FILE, METRICS_FILE, PLOT_FILE = "finetune.json", "metrics.json", "loss.png"
REPORT_FILE = "report.html"
LOCK_FILE = ".finetune.lock"  # exists while a run writes the folder
FILES = (SETTINGS_FILE, METRICS_FILE, PLOT_FILE, CONFIG, WEIGHTS, TEMPLATE, REPORT_FILE)
# The key in the settings file for checkpoints of an earlier run that `overwrite` did not delete: see checkpoints.py.
EARLIER = "earlier_checkpoints"
# Further keys in the settings file: options of the command that do not change the adapter, and may differ in `resume`.
OPTIONS = ("output", "by_product", "keep_checkpoints", "threads", "report_to", "report", "report_examples")


@dataclass(frozen=True)
class Resumption:
    """What `resume` found: a checkpoint and the faults of newer checkpoints, or the steps of a finished run."""

    checkpoint: Path | None
    damaged: list[str] = field(default_factory=list)
    steps_done: int | None = None


def open_new(output: Path, overwrite: bool) -> None:
    """Checks the folder for a new run; makes and removes nothing.

    Raises UserError if the folder cannot be read, or if it has an earlier run and overwrite is false.
    """
    _check_names(output)
    own = [output / name for name in (METRICS_FILE, PLOT_FILE) if (output / name).exists()]
    earlier = [*output.glob("checkpoint-*"), *output.glob("adapter_*"), *own]
    if earlier and not overwrite:
        raise UserError(
            f"`output` {output} already holds {earlier[0].name}; go on with `resume`, replace it with `overwrite`, or "
            "name another folder"
        )


@contextlib.contextmanager
def alone(output: Path) -> Iterator[None]:
    """Makes the folder and locks it against other runs during the block. New folders that are still empty are deleted.

    UserError if the folder cannot be written, or if another run is writing it.
    """
    new = [folder for folder in (output, *output.parents) if not folder.exists()]
    try:
        with as_user_error(f"`output` {output} cannot be written", (OSError,)):
            output.mkdir(parents=True, exist_ok=True)
            file = open(output / LOCK_FILE, "w")
        with file:
            if not _is_held(file, output / LOCK_FILE):
                raise UserError(
                    f"`output` {output}: another finetune is writing it; wait for its end or name another folder"
                )
            try:
                yield
            finally:
                (output / LOCK_FILE).unlink(missing_ok=True)
    finally:
        for folder in new:
            with contextlib.suppress(OSError):  # it is not there, or not empty
                folder.rmdir()


def _is_held(file, path: Path) -> bool:
    """Whether this process has locked the file, and the file is still in the folder: a finished run deletes it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
            raise
        return True  # a file system without locks


def begin(output: Path, settings, options: dict, read: dict[str, str]) -> dict[str, str]:
    """Removes the metrics, the report, the event files and the checkpoints of an earlier run, and writes the settings.

    options: further options of the command, for a config file that repeats the run. read: `hashes.hashes_of` the run.
    The earlier run's adapter stays until this run replaces it. Files and folders named checkpoint-* that no run wrote
    are not deleted; they are returned as {name: reason}.
    """
    for name in (METRICS_FILE, REPORT_FILE):
        with as_user_error(f"{output / name} cannot be deleted", (OSError,)):
            (output / name).unlink(missing_ok=True)
    event_files.remove(output)
    left = checkpoints.remove(output)
    with as_user_error(f"`output` {output} cannot be read", (OSError,)):
        stay = {path.name: checkpoints.fingerprint(path) for path in checkpoints.checkpoints(output)}
    records = {hashes.KEY: read} | ({EARLIER: stay} if stay else {})
    write_json(output / SETTINGS_FILE, options | dataclasses.asdict(settings) | records)
    return left


def resumption(output: Path, settings, read: dict[str, str]) -> Resumption:
    """What `resume` does in this folder: see Resumption. read: `hashes.hashes_of` the run.

    Raises UserError if the folder has no run, if its run has other settings or has read other data, if the settings
    cannot be read, or if no checkpoint is complete.
    """
    none = f"`resume`: no complete checkpoint in {output}; start without `resume`"
    if not (output / SETTINGS_FILE).is_file():
        raise UserError(none)
    _check_names(output)
    now = dataclasses.asdict(settings)
    earlier = check_settings(output / SETTINGS_FILE, now, read)
    if (steps := steps_of_complete(output, now)) is not None:
        return Resumption(None, steps_done=steps)
    with as_user_error(f"`output` {output} cannot be read", (OSError,)):
        checkpoint, damaged = checkpoints.newest_whole(output, earlier)
    if checkpoint is None and damaged:
        raise UserError(f"`resume`: {'; '.join(damaged)}: no whole checkpoint is left; start again with `overwrite`")
    if checkpoint is None:
        raise UserError(none)
    return Resumption(checkpoint, damaged)


def can_be_resumed(output: Path) -> bool:
    """Whether `resume` with the same options would find a checkpoint."""
    try:
        saved = json_text.read_object(output / SETTINGS_FILE, SETTINGS_FILE)
    except UserError:
        return False
    return checkpoints.newest_whole(output, saved.get(EARLIER, {}))[0] is not None


def _check_names(output: Path) -> None:
    with as_user_error(f"`output` {output} cannot be read", (OSError,)):
        blocked = next((name for name in FILES if (output / name).exists() and not (output / name).is_file()), None)
    if blocked:
        raise UserError(f"`output` {output}: {blocked} in it is not a file; move it away or name another folder")


def check_settings(path: Path, now: dict, read: dict[str, str], adapter: str | None = None) -> dict[str, str]:
    """The file's {name: fingerprint} of earlier checkpoints. UserError if the file's settings are not exactly `now`, or
    its hashes are not `read`.

    adapter: the name of one among several, for messages.
    """
    of_adapter = f" of {adapter}" if adapter else ""
    remedy = "start again with `overwrite`"
    try:
        saved = json_text.read_object(path, str(path))
    except UserError as error:
        raise UserError(f"`resume`: {error}; {remedy}") from error
    earlier, was_read = saved.pop(EARLIER, {}), saved.pop(hashes.KEY, {})  # earlier versions wrote no hashes
    missing, unknown = sorted(now.keys() - saved.keys()), sorted(saved.keys() - now.keys() - set(OPTIONS))
    unknown += [key for key, its in ((EARLIER, earlier), (hashes.KEY, was_read)) if not isinstance(its, dict)]
    if missing or unknown:
        what = f"has no {missing[0]}" if missing else f"has an unknown entry, {unknown[0]}"
        raise UserError(f"`resume`: {path} {what}: another version of this command wrote it; {remedy}")
    for name, value in now.items():
        if saved[name] != value:
            raise UserError(
                f"`resume`: `{name}`{of_adapter} was {_given(saved[name])} in the run to go on with and is "
                f"{_given(value)} now; give the same options"
            )
    if now["adapter"] is not None and Path(now["adapter"]).resolve() == path.parent.resolve():
        read = {name: its for name, its in read.items() if name != "adapter"}  # the run itself replaces the adapter
    hashes.check_hashes(was_read, read, now, adapter)
    return earlier


def _given(value) -> str:
    return "not given" if value is None else quoted(value)


def steps_of_complete(output: Path, settings: dict) -> int | None:
    """The number of steps of a finished run with these settings, from metrics.json; None if there is no such run."""
    try:
        metrics = json_text.read_object(output / METRICS_FILE, METRICS_FILE)
    except UserError:
        return None
    whole = metrics.get("settings") == settings and fault(output) is None
    return metrics.get("steps") if whole else None
