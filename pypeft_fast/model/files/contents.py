"""What has been read of an adapter's two files, before anything of it goes into a model."""

import contextlib
import gc
from typing import NamedTuple

import torch

from .check import read_tensors
from .config import read_config
from .lora_fields import check_lora_values
from .reading import Pair


class Contents(NamedTuple):
    """pair: the open files. config: PEFT's config, fields: {field: value} of the file's config, both None without that
    file. tensors: {name in the file: tensor}."""

    pair: Pair
    config: object | None
    fields: dict | None
    tensors: dict[str, torch.Tensor]

    @classmethod
    def of(cls, pair: Pair, config=None) -> "Contents":
        """config: to use instead of the file's. ValueError names a file that is truncated, corrupt or has a field that
        is not known, or a value that no such field can have."""
        fields = None
        if config is not None:
            check_lora_values("config", config)
        if config is None and pair.config is not None:
            config, fields = read_config(pair.config_path, pair.config)
        return cls(pair, config, fields, read_tensors(pair.weights_path, pair.pinned))


@contextlib.contextmanager
def without_collections():
    """Python's cyclic garbage collector waits during the block.

    Adding an adapter makes tens of thousands of objects that all stay, and collections that free nothing take a half of
    the time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
