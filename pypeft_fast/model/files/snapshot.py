"""From the checked contents of a file to PEFT's loading: a folder for PEFT, and a check of what PEFT has made."""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator

import torch
from safetensors.torch import save_file

from .check import check
from .contents import Contents
from .dry_run import Place, is_sharded, present
from .initial_values import without_initial_values
from .plain_lora import has_own_matrices_alone
from .reading import CONFIG, WEIGHTS

LARGE = 1 << 24  # values: of a smaller adapter they are drawn in less time than without_initial_values itself takes
# Options with which PEFT keeps some initial values, or makes none.
_WITHOUT_VALUES = ("ignore_mismatched_sizes", "low_cpu_mem_usage")


@contextlib.contextmanager
def loading(contents: Contents, config, place: Place | None, options: dict, undo: Callable) -> Iterator[str]:
    """A folder with the checked files alone, for PEFT's loading in the block.

    place, options: as in `check`, which raises ValueError before any change. options["key_mapping"] is emptied, since
    the names in the folder are those for PEFT. undo: a function of these names that returns the context of the block.
    """
    pair, tensors = contents.pair, contents.tensors
    names = check(pair.weights_path, tensors, config, place, options)
    options["key_mapping"] = {}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="adapter-"))
        _write(folder, contents, names)
        stack.enter_context(undo(names.values()))
        if _replaces_all_values(place, config, set(names.values()), options):
            stack.enter_context(without_initial_values())
        try:
            yield folder
        except RuntimeError as error:
            if place is None and "loading state_dict" in str(error):
                raise ValueError(f"{pair.weights_path} does not fit this model and config: {error}") from error
            raise


def _replaces_all_values(place, config, names, options) -> bool:
    """Whether the file has all values of an adapter of LARGE size, so that PEFT's initial values are drawn in vain."""
    if place is None or not has_own_matrices_alone(config) or any(map(options.get, _WITHOUT_VALUES)):
        return False
    if torch.is_inference_mode_enabled():  # its tensors have no version, which tells whether a tensor is written to
        return False
    return set(place.tensors) <= names and sum(tensor.numel() for tensor in place.tensors.values()) >= LARGE


def _write(folder, contents, names) -> None:
    """The config's known fields, and a link to the open copy of the weights; or the weights once more if that is
    closed, or if tensors have to be renamed."""
    if contents.fields is not None:
        with open(os.path.join(folder, CONFIG), "w", encoding="utf-8") as file:
            json.dump(contents.fields, file)
    weights = os.path.join(folder, WEIGHTS)
    if contents.copy is not None and all(old == new for old, new in names.items()):
        os.symlink(contents.copy, weights)
    else:
        renamed = {new: contents.tensors[old] for old, new in names.items()}
        save_file(renamed, weights, metadata={"format": "pt"})


def check_loaded(model, contents: Contents, adapter_name: str, options: dict) -> None:
    """What `check` does before loading, for an adapter without a dry run: ValueError if the file lacks tensors of the
    adapter that PEFT has made, or has others. options: PEFT's loading options, as they were given."""
    config = model.peft_config[adapter_name]
    is_hidden = config.is_adaption_prompt and not hasattr(model.base_model, "_temporarily_active")  # before PEFT 0.19
    if not is_sharded(model) and not is_hidden:
        check(contents.pair.weights_path, contents.tensors, config, present(model, adapter_name), options)
