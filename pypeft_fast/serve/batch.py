"""A batch that is decoded token by token: rows of different adapters, which join and leave between two steps."""

import inspect
from dataclasses import dataclass

import torch

from ..finetune.errors import UserError
from .adapters import Adapter, Adapters
from .cache import PaddedCache

STATEFUL = ("mamba", "linear_attention", "recurrent", "conv")  # layer types that keep more than keys and values


@dataclass(eq=False)
class Row:
    """One sequence: its adapter, its prompt, and the tokens that were chosen after it."""

    adapter: Adapter
    prompt: list[int]
    answer: list[int]


class Reading:
    """Rows whose prompts are read some columns at a time, before the rows join a batch."""

    def __init__(self, rows: list[Row], pad: int, layers: int):
        longest = max(len(row.prompt) for row in rows)
        self.rows = rows
        self.ids = torch.tensor([[pad] * (longest - len(row.prompt)) + row.prompt for row in rows])
        self.mask = torch.tensor([[0] * (longest - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        self.positions = (self.mask.cumsum(dim=-1) - 1).clamp(min=0)
        self.cache = PaddedCache(layers)
        self.columns_read = 0


class Batch:
    """The rows that are being decoded, with their keys and values.

    `step` returns the logits of each row's next token; the caller appends the chosen token to `row.answer` before the
    next step.
    """

    def __init__(self, adapters: Adapters, pad: int):
        self.rows: list[Row] = []
        self._adapters = adapters
        self._pad = pad
        self._cache: PaddedCache | None = None
        self._mask: torch.Tensor | None = None  # [rows, columns]: 1 for a token, 0 for padding
        self._accepted = _accepted(adapters.model)
        self._layers = _layers(adapters.model)

    @property
    def columns(self) -> int:
        return 0 if self._mask is None else self._mask.shape[1]

    def begin(self, rows: list[Row]) -> Reading:
        """New rows, whose prompts `read` reads."""
        return Reading(rows, self._pad, self._layers)

    def read(self, reading: Reading, tokens: int) -> torch.Tensor | None:
        """Reads so many tokens of the prompts, padding included, but at least a column. After the last column the rows
        are appended to the batch, and their logits [new rows, vocabulary] returned; None before."""
        at, columns = reading.columns_read, reading.ids.shape[1]
        end = min(columns, at + max(1, tokens // len(reading.rows)))
        ids, positions = reading.ids[:, at:end], reading.positions[:, at:end]
        logits = self._forward(reading.rows, reading.cache, ids, reading.mask[:, :end], positions)
        reading.columns_read = end
        if end < columns:
            return None
        if self._cache is None:
            self._cache, self._mask = reading.cache, reading.mask
        else:
            self._cache.join(reading.cache)
            columns = max(self.columns, columns)
            self._mask = torch.cat([_padded(self._mask, columns), _padded(reading.mask, columns)])
        self.rows += reading.rows
        return logits

    def step(self) -> torch.Tensor:
        """Reads the last token of every row; returns the logits [rows, vocabulary] of the next tokens."""
        ids = torch.tensor([[row.answer[-1]] for row in self.rows])
        positions = torch.tensor([[len(row.prompt) + len(row.answer) - 1] for row in self.rows])
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=-1)
        return self._forward(self.rows, self._cache, ids, self._mask, positions)

    def keep(self, rows: list[Row]) -> None:
        """Removes all other rows, and the columns that are padding in every kept row."""
        kept = [i for i, row in enumerate(self.rows) if row in rows]
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        if not kept:
            self._cache = self._mask = None
            return
        mask = self._mask[kept]
        first = int(mask.any(dim=0).to(torch.int64).argmax())
        self._mask = mask[:, first:]
        self._cache.keep(kept, first)

    def clear(self) -> None:
        self.keep([])

    @torch.no_grad()
    def _forward(self, rows, cache, ids, mask, positions):
        device = self._adapters.model.device
        options = {"position_ids": positions.to(device)} if "position_ids" in self._accepted else {}
        if "logits_to_keep" in self._accepted:
            options["logits_to_keep"] = 1
        options[_name_of_cache(self._accepted)] = cache
        output = self._adapters.forward(
            [row.adapter for row in rows],
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            use_cache=True,
            **options,
        )
        return output.logits[:, -1]


def _padded(mask, columns):
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))


def _accepted(model) -> set[str]:
    return set(inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters)


def _name_of_cache(accepted) -> str | None:
    """The argument that takes the cache: `cache` since transformers 5.24."""
    return next((name for name in ("past_key_values", "cache") if name in accepted), None)


def _layers(model) -> int:
    """The number of layers with keys and values. UserError for a model that keeps another state than these."""
    config = model.config.get_text_config(decoder=True)
    kinds = [kind for kind in getattr(config, "layer_types", None) or () if any(s in kind for s in STATEFUL)]
    if model.config.is_encoder_decoder or kinds or _name_of_cache(_accepted(model)) is None:
        raise UserError(
            f"`model`: a server decodes rows of decoders with a cache of keys and values alone, and "
            f"{type(model).__name__} is none"
        )
    return config.num_hidden_layers
