"""A copy of a weights file in memory: what is checked is what is loaded, whatever happens to the file meanwhile."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator

from safetensors import SafetensorError, safe_open

from .check import damaged
from .reading import Pair

_PART = 1 << 20  # bytes that are copied at once


@contextlib.contextmanager
def private_copy(pair: Pair) -> Iterator[str]:
    """A path that opens the copy, during the block. Tensors that a library maps from the copy stay valid afterwards.

    ValueError: the file is truncated or corrupt, or was written to since the pair was opened.
    """
    try:
        with safe_open(pair.pinned, framework="pt"):  # compares the header with the file's size, before it is copied
            pass
    except SafetensorError as error:
        raise damaged(pair.weights_path, error) from error
    with _file_in_memory() as copy:
        with open(pair.pinned, "rb", buffering=0) as source:
            shutil.copyfileobj(source, copy, _PART)
        copy.flush()
        pair.check_unwritten()
        yield f"/dev/fd/{copy.fileno()}"


def _file_in_memory():
    """An open file that has no name; on systems other than Linux it is on the disk."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("adapter"), "wb")
    return tempfile.TemporaryFile()
