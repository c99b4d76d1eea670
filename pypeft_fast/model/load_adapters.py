"""pf.load_adapters: all adapters of a folder into a model, or into a bank of one layer, in one call."""

import os
import reprlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from peft import PeftMixedModel
from peft import PeftModel as AnyPeftModel
from torch import nn

from ..nn import MultiLoRALinear
from .files.bank import put_into_bank, read_for_bank
from .files.contents import Contents, without_collections
from .files.folders import adapter_folders
from .files.reading import opened
from .peft_model import PeftModel

THREADS = 8  # the most that read at once, unless told
OPTIONS = {
    "torch_device", "autocast_adapter_dtype", "ephemeral_gpu_offload", "low_cpu_mem_usage", "key_mapping",
    "ignore_mismatched_sizes", "device_map", "max_memory", "offload_folder", "offload_dir", "offload_index",
}  # fmt: skip


def load_adapters(
    model: nn.Module,
    folder: str | os.PathLike,
    names: list[str] | None = None,
    *,
    module: str | None = None,
    is_trainable: bool = False,
    threads: int | None = None,
    **options,
) -> nn.Module:
    """Loads the adapters that `save_pretrained` has put into a folder; several threads read the files.

    The folder itself holds the adapter "default", as PEFT saves it; every other one is in a subfolder of its name. All
    files are read and checked before the model changes. An adapter whose name the model has gets the file's values.

    Args:
        model: a base model, which becomes a PeftModel whose active adapter is the first one; a PeftModel of this
            package; or a `pf.nn.MultiLoRALinear`, whose slots get the adapters' values: nothing is allocated.
        names: the adapters to load; all in the folder if left out.
        module: for a MultiLoRALinear, the name of its layer in the files, such as "model.layers.0.self_attn.q_proj";
            may be left out if the files have one layer.
        is_trainable, options: as in PEFT's load_adapter.
        threads: that read files at once, at most; the number of adapters, but no more than 8, if left out.

    Returns:
        the PeftModel, or the bank.

    Raises:
        FileNotFoundError: the folder has no adapter, or none of a name in `names`.
        ValueError: a file is truncated, corrupt or does not fit the model or the bank, adapters are of several methods,
            PEFT does not add one beside the others, or the bank is full. The message names the file.
        TypeError: model is a PeftModel of peft itself (pf.PeftModel.from_pretrained makes one of this package) or a
            mixed one; an option is none of PEFT's, or is none of a bank's.
    """
    found = adapter_folders(folder, names)
    if threads is None:
        threads = min(len(found), THREADS)
    elif not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"threads={threads!r} must be an integer of at least 1")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={reprlib.repr(model)} is a {type(model).__name__}; give a torch.nn.Module")
    if isinstance(model, PeftMixedModel):
        raise TypeError(
            f"model is a {type(model).__name__}, which holds adapters of several methods; load into a base model, or a "
            "pf.PeftModel, and call model.load_adapter for each adapter of a mixed one"
        )
    if isinstance(model, AnyPeftModel) and not isinstance(model, PeftModel):
        raise TypeError(
            f"model is peft's {type(model).__name__}; load into the base model, or into one that pf.get_peft_model or "
            "pf.PeftModel.from_pretrained has made"
        )
    if isinstance(model, MultiLoRALinear):
        if is_trainable or options:
            raise TypeError(f"{next(iter(options), 'is_trainable')} is not for a MultiLoRALinear; leave it out")
        return _into_bank(model, found, module, threads)
    if unknown := sorted(set(options) - OPTIONS):
        raise TypeError(
            f"{', '.join(unknown)}: load_adapters has no such argument; beside its own it takes those of PEFT's "
            f"load_adapter for local files: {', '.join(sorted(OPTIONS))}"
        )
    if module is not None:
        raise ValueError(f"module={module!r} is for a MultiLoRALinear; leave it out for a {type(model).__name__}")
    with ThreadPoolExecutor(threads) as pool:
        contents = dict(zip(found, pool.map(_read, found.values()), strict=True))
    with without_collections():
        return PeftModel._load_all(model, contents, is_trainable, options)


def _read(path) -> Contents:
    """The contents of an adapter's files, which are open only while this thread reads them."""
    with opened(path) as pair, Contents.read(pair) as contents:
        return contents.closed()


def _into_bank(bank, found: dict[str, Path], module, threads):
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(lambda path: read_for_bank(bank, path, module), found.values()))
    put_into_bank(bank, dict(zip(found, parts, strict=True)))
    return bank
