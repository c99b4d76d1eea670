"""Which adapter each row of a batch belongs to, during one call.

`adapter_names` of a model's forward or generate gives one adapter name per row. PEFT passes the names to the layers by
hooks on the modules, so calls in two threads mix up their names. Here a thread-local variable holds the names of a
call.
"""

import contextlib
import functools
import re
import threading
from dataclasses import dataclass

import torch
from torch import nn

BASE = "__base__"  # in adapter_names: this row gets no adapter
TIME_MAJOR = ("fsmt", "xlnet")  # model types of transformers whose layers' inputs are [length, batch, ..]
# Config fields of multimodal models, in whose vision and audio parts a row is not an element of the batch.
_SOMETHING_ELSE = ("image_token_id", "image_token_index", "video_token_id", "audio_token_id", "audio_token_index")
# Whether any thread runs a call with adapter_names; other calls only read this plain global, the cheapest check.
in_use = False
_running = 0
_lock = threading.Lock()


@dataclass(frozen=True)
class Rows:
    """The adapters of a batch's rows.

    names: one per row of the caller's batch. expand: how many adjacent rows the model makes of each row (beams).
    features: whether the model's own input is a matrix [n, K], one row per element of the batch.
    """

    names: tuple[str, ...]
    expand: int = 1
    features: bool = False

    def of(self, layer, x) -> tuple[str, ...]:
        """The adapter of each row of x, a layer's input.

        Raises ValueError if the rows of x may not be the rows of the batch: x has another number of rows, x has a
        layout other than [batch, ..], or the layer is in a block and x is a packed matrix.
        """
        where, obstacle = getattr(layer, "_rows_of_batch", ("this layer", None))
        count = len(self.names)
        if obstacle is None and x.dim() == 2 and not self.features and getattr(layer, "_in_a_block", False):
            obstacle = "its input is a matrix, whose rows may be any tokens"
        if obstacle is not None:
            raise ValueError(f"adapter_names: the rows of {where} are not those of the batch: {obstacle}")
        if x.shape[0] not in (count, count * self.expand):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{count} and {x.shape[0]} respectively, the rows of {where}; give one name a row"
            )
        return self.names if x.shape[0] == count else _expanded(self.names, self.expand)

    def groups(self, layer, x) -> list[tuple[str, torch.Tensor]]:
        """[(adapter, indices of the adapter's rows in x)], in order of first appearance."""
        return [(n, torch.tensor(rows, device=x.device)) for n, rows in positions(self.of(layer, x)).items()]


@functools.lru_cache(maxsize=32)
def _expanded(names, expand):
    return tuple(name for name in names for _ in range(expand))


def positions(names) -> dict[str, list[int]]:
    """{name: rows with this name}, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        found.setdefault(name, []).append(row)
    return found


class _OfThread(threading.local):
    """The rows of this thread's call. Not a ContextVar, which torch.compile cannot trace. The attributes are set in
    __init__, so that torch.compile guards on the value of each thread."""

    def __init__(self):
        self.rows: Rows | None = None
        self.is_generating = False
        self.are_kept = False


_thread = _OfThread()


def current() -> Rows | None:
    """The rows of the call that runs in this thread, None for a call without adapter_names."""
    return _thread.rows if in_use else None


@contextlib.contextmanager
def generating():
    """During the block each row of a call is a prompt, which generate may expand to several rows."""
    before, _thread.is_generating = _thread.is_generating, True
    try:
        yield
    finally:
        _thread.is_generating = before


@contextlib.contextmanager
def kept(found: Rows):
    """`using`, where no backward pass can lose the rows: within a checkpoint that gives the block these rows again, and
    in a call without gradients."""
    before, _thread.are_kept = _thread.are_kept, True
    try:
        with using(found):
            yield
    finally:
        _thread.are_kept = before


def are_kept() -> bool:
    """Whether no backward pass can lose the rows of this call."""
    return _thread.are_kept


def is_generating() -> bool:
    return _thread.is_generating


@contextlib.contextmanager
def using(rows: Rows):
    """During the block layers apply to each row its own adapter."""
    _count(1)
    before, _thread.rows = _thread.rows, rows
    try:
        yield
    finally:
        _thread.rows = before
        _count(-1)


def _count(change):
    global in_use, _running
    with _lock:
        _running += change
        in_use = _running > 0


def mark(layer, name, parents) -> None:
    """Stores in a layer its name, and why the rows of its input are not the rows of the batch, or None. parents: the
    modules around the layer, the model first."""
    if "_rows_of_batch" not in vars(layer):
        layer._rows_of_batch = name, _obstacle(name, parents)
        layer._in_a_block = any(isinstance(parent, nn.ModuleList) for parent in parents)


def _obstacle(name, parents) -> str | None:
    config = getattr(parents[0], "config", None)
    packs = any(getattr(config, option, None) is not None for option in _SOMETHING_ELSE)
    time_major = getattr(config, "model_type", None) in TIME_MAJOR
    parts = name.lower().split(".")
    attention = [getattr(p, "self_attn", p) for p in parents]  # nn.TransformerEncoderLayer has no batch_first itself
    if time_major or any(getattr(p, "batch_first", True) is False for p in attention):
        return "the model is time-major, [length, batch, ..]"
    if any(part in ("expert", "experts") for part in parts):
        return "they are the tokens that were sent to one expert"
    if packs and any(re.search("vision|visual|image|audio|speech", part) for part in parts):
        return "they are images, patches or sounds, of which a row may have several or none"
    return None
