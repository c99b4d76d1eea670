"""What every module that holds named adapters has in common: which are active, and one adapter a row."""

import torch
from torch import nn

BASE = "__base__"  # in adapter_names: this row gets no adapter
# What nn.Module keeps of a module's hooks.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


class AdapterLayer(nn.Module):
    """A module with named adapters; `holders` names its ModuleDicts and ParameterDicts, {adapter: what trains}."""

    holders: tuple[str, ...] = ()

    def _start(self):
        """After nn.Module.__init__."""
        self.active: list[str] = []  # adapters that forward applies
        self.rows: list[str] | None = None  # one adapter a row, while the model's forward says so

    def held(self):
        """(adapter, module or Parameter) of everything that trains here."""
        return [item for holder in self.holders for item in getattr(self, holder).items()]

    def adapters(self) -> list[str]:
        return list(dict.fromkeys(name for name, _ in self.held()))

    def remove(self, adapter):
        for holder in self.holders:
            if adapter in getattr(self, holder):
                del getattr(self, holder)[adapter]
        self.active = [name for name in self.active if name != adapter]

    def clash(self, names) -> str | None:
        """Why these adapters cannot be active here together, or None."""
        return None

    def replacement(self, adapters=None):
        """What stands here in the model once it is taken off again; adapters: those kept, default the active ones."""
        raise NotImplementedError


def by_rows(x, names, function):
    """function(rows of x, name) for each distinct name, put together in the order of x's rows.

    A model may repeat the rows of a batch, each in place (beam search): then there are k rows to a name.
    """
    repeats, rest = divmod(x.shape[0], len(names))
    if rest or not repeats:
        raise ValueError(f"adapter_names has {len(names)} names for a batch of {x.shape[0]} rows; give one a row")
    names = [name for name in names for _ in range(repeats)]
    groups = {name: [i for i, n in enumerate(names) if n == name] for name in dict.fromkeys(names)}
    parts = [function(x[torch.tensor(rows, device=x.device)], name) for name, rows in groups.items()]
    order = torch.tensor([i for rows in groups.values() for i in rows], device=x.device)
    return torch.cat(parts)[order.argsort()]


def with_hooks_of(module, successor):
    for name in HOOKS:  # the dicts themselves, so that a hook's handle still removes it
        setattr(successor, name, getattr(module, name))
    return successor
