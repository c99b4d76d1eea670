"""The names of a batch's rows as the index that `multi_lora_linear` takes: made once for a batch, not once a layer."""

import functools

import torch
from torch.compiler import is_compiling

from .rows import BASE


class NamedRows:
    """A batch's rows by the names of their adapters.

    names: one a row. adapters: those other than BASE, in the order of their first rows.
    """

    def __init__(self, names):
        self.names = names
        self.adapters = tuple(dict.fromkeys(name for name in names if name != BASE))
        self.is_one = len(self.adapters) == 1 and BASE not in names  # one adapter has all rows
        self._indices: dict[tuple, torch.Tensor] = {}
        self._repeats = 1  # of the kept indices: those of one length of the rows are kept

    def held(self, layer_s) -> tuple[str, ...]:
        """Those of the adapters that a layer has, from its {name: ..}."""
        for name in self.adapters:
            if name not in layer_s:
                return tuple(name for name in self.adapters if name in layer_s)
        return self.adapters

    def index(self, adapters, x) -> torch.Tensor:
        """int64 [M]: for each row of x [n, .., K] as [M, K] the place of its adapter among `adapters`, or -1."""
        repeats = 1
        for size in x.shape[1:-1]:
            repeats *= size
        if is_compiling():
            return self._index(adapters, repeats, x.device)
        key = adapters, repeats, x.device
        index = self._indices.get(key)
        if index is None:
            if repeats != self._repeats:
                self._indices, self._repeats = {}, repeats
            with torch.inference_mode(False):  # else a later call could not save it for its backward pass
                index = self._indices[key] = self._index(adapters, repeats, x.device)
        return index

    def _index(self, adapters, repeats, device):
        place = {name: i for i, name in enumerate(adapters)}
        index = torch.tensor([place.get(name, -1) for name in self.names], dtype=torch.int64, device=device)
        return index if repeats == 1 else index.repeat_interleave(repeats)


@functools.lru_cache(maxsize=8)
def _known(names):
    return NamedRows(names)


def named_rows(names) -> NamedRows:
    """Of a list or tuple of names; the same object for the same names while these are among the latest."""
    names = tuple(names)
    return NamedRows(names) if is_compiling() else _known(names)
