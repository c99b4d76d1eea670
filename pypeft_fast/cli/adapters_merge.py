"""`pypeft-fast adapters merge`: one adapter, the weighted sum of several."""

import shlex
import sys
from pathlib import Path

from ..finetune.adapters.combinations import is_pruned
from ..finetune.adapters.files import CONFIG, check_config, check_files, object_in
from ..finetune.calm import calm_libraries
from ..finetune.errors import UserError
from .terminal import say


def merge(arguments) -> None:
    folders, method = arguments.folders, arguments.method
    _check_options(arguments)
    for folder in folders:
        check_folder(folder)
    if arguments.output.exists():
        raise UserError(f"--output {arguments.output} exists; name a new folder")
    _note_of_bases(folders)
    calm_libraries()
    from ..finetune.adapters.weighted import save_combined

    options = {"rank": arguments.rank, "density": arguments.density, "seed": arguments.seed}
    save_combined(folders, arguments.weights, method, arguments.output, **options)
    say(f"the combination of {len(folders)} adapters is in {arguments.output}")
    say(f"try it: pypeft-fast chat --model MODEL --adapter {shlex.quote(str(arguments.output))}")


def check_folder(folder: Path) -> None:
    """UserError if there is no such folder, if a file of the adapter in it is missing or not complete, or if its config
    has a value that no adapter can have."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of an adapter")
    check_files(folder)
    check_config(folder)


def _check_options(arguments) -> None:
    folders, weights, method = arguments.folders, arguments.weights, arguments.method
    if len(folders) < 2:
        raise UserError(f"{folders[0]} is one adapter; give the folders of two or more")
    if len(weights) != len(folders):
        raise UserError(f"--weights has {len(weights)} numbers for {len(folders)} adapters; give one for each")
    if is_pruned(method) and arguments.density is None:
        raise UserError(f"--method {method} needs --density, the share of values that it keeps, such as 0.5")
    if not is_pruned(method) and arguments.density is not None:
        raise UserError(f"--density does not go with --method {method}; it is for ties, dare and magnitude_prune")
    if arguments.rank is not None and not method.endswith("svd"):
        raise UserError(f"--rank does not go with --method {method}; it is for the methods with svd")


def _note_of_bases(folders: list[Path]) -> None:
    """Prints a note on stderr if the configs name different base models."""
    bases = {str(object_in(folder / CONFIG)[0].get("base_model_name_or_path")): folder for folder in folders}
    if len(bases) > 1:
        (base, folder), (other, another), *_ = bases.items()
        say(
            f"note: {folder} was trained over {base} and {another} over {other}; a combination is useful only over "
            "the model that all adapters were trained over",
            file=sys.stderr,
        )
