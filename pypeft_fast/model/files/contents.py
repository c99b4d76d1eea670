"""What has been read of an adapter's two files, before anything of it goes into a model."""

import contextlib
import gc
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .check import read_tensors
from .config import read_config
from .lora_fields import check_lora_values
from .private_copy import private_copy
from .reading import Pair


class Contents(NamedTuple):
    """pair: the paths, and the files as long as they are open. config: PEFT's config, fields: {field: value} of the
    file's config, both None without that file. tensors: {name in the file: tensor}. copy: a path that opens the bytes
    from which the tensors are, or None if the file of these bytes is closed."""

    pair: Pair
    config: object | None
    fields: dict | None
    tensors: dict[str, torch.Tensor]
    copy: str | None

    @classmethod
    @contextlib.contextmanager
    def read(cls, pair: Pair, config=None) -> Iterator["Contents"]:
        """The contents, during the block; afterwards all but the copy is still valid.

        config: to use instead of the file's. ValueError names a file that is truncated, corrupt or has a field that is
        not known, or a value that no such field can have.
        """
        fields = None
        if config is not None:
            check_lora_values("config", config)
        if config is None and pair.config is not None:
            config, fields = read_config(pair.config_path, pair.config)
        with private_copy(pair) as copy:
            yield cls(pair, config, fields, read_tensors(pair.weights_path, copy), copy)

    def closed(self) -> "Contents":
        """These contents for the time after the block."""
        return self._replace(copy=None)


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
