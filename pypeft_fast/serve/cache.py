"""The keys and values of a padded batch, whose rows join and leave between two steps.

All rows end in the same column. A row with fewer tokens than the longest row begins with columns of padding, which the
attention mask hides.
"""

import torch
from transformers.cache_utils import Cache, DynamicLayer

STEP = 64  # columns by which a full layer grows, so that not every token copies the whole layer


class PaddedLayer(DynamicLayer):
    """The keys and values of one layer of the model, [rows, heads, columns, width], in tensors with spare columns.

    `keys` and `values`, which the model reads, are the used columns of these tensors.
    """

    def update(self, key_states, value_states, *args, **kwargs):
        """Appends new columns; returns all used columns."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room = [_empty(new, len(new), 0) for new in (key_states, value_states)]
            self.keys, self.values = self._room
        used, more = self.keys.shape[-2], key_states.shape[-2]
        if used + more > self._room[0].shape[-2]:
            self._place([(self.keys, 0)], [(self.values, 0)], len(self.keys), used, used + more + STEP)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, used : used + more] = new
        self._show(used + more)
        return self.keys, self.values

    def join(self, other: "PaddedLayer") -> None:
        """Appends the rows of another layer; the shorter rows get padding in front."""
        mine, used = len(self.keys), max(self.keys.shape[-2], other.keys.shape[-2])
        keys, values = [(self.keys, 0), (other.keys, mine)], [(self.values, 0), (other.values, mine)]
        self._place(keys, values, mine + len(other.keys), used, used + STEP)

    def keep(self, rows: torch.Tensor, first: int) -> None:
        """Keeps these rows, without the columns before `first`."""
        keys, values = ([(part[rows, :, first:], 0)] for part in (self.keys, self.values))
        used = self.keys.shape[-2] - first
        self._place(keys, values, len(rows), used, used + STEP)

    def _place(self, keys, values, rows, used, columns) -> None:
        """New tensors with (part, its first row) each; every part ends in the last used column."""
        for i, parts in enumerate((keys, values)):
            room = _empty(parts[0][0], rows, columns)
            for part, at in parts:
                room[at : at + len(part), :, used - part.shape[-2] : used] = part
            self._room[i] = room
        self._show(used)

    def _show(self, used) -> None:
        self.keys, self.values = (room[:, :, :used] for room in self._room)


def _empty(like, rows, columns) -> torch.Tensor:
    """Zeros: a masked column has the weight 0, and 0 times an unwritten NaN would be NaN."""
    return like.new_zeros(rows, like.shape[1], columns, like.shape[3])


class PaddedCache(Cache):
    """A cache of transformers' interface with a PaddedLayer for each layer of the model."""

    def __init__(self, layers: int):
        super().__init__(layers=[PaddedLayer() for _ in range(layers)])

    def join(self, other: "PaddedCache") -> None:
        for mine, its in zip(self.layers, other.layers, strict=True):
            if its.is_initialized:  # a model may share the keys and values of one layer with others
                mine.join(its)

    def keep(self, rows: list[int], first: int) -> None:
        for layer in self.layers:
            if layer.is_initialized:
                layer.keep(torch.tensor(rows, device=layer.keys.device), first)
