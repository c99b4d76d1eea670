"""modules_to_save: a module that trains whole, with a copy for every adapter."""

import copy

from torch import nn

from .layer import BASE, AdapterLayer, by_rows


class SavedModule(AdapterLayer):
    """Runs the active adapter's copy of a module, or the original where no active adapter has one.

    Parameters are named as PEFT names them: original_module.* and modules_to_save.<adapter>.*.
    """

    holders = ("modules_to_save",)

    def __init__(self, module):
        super().__init__()
        self._start()
        self.original_module = module.requires_grad_(False)
        self.modules_to_save = nn.ModuleDict()
        self.train(module.training)

    def add(self, adapter):
        self.modules_to_save[adapter] = copy.deepcopy(self.original_module).requires_grad_(True)

    def clash(self, names):
        copies = [name for name in names if name in self.modules_to_save]
        if len(copies) > 1:
            kind = type(self.original_module).__name__
            return f"{' and '.join(copies)} each have a {kind} in modules_to_save; activate one of them"
        return None

    def current(self, adapters=None):
        """The module that stands for these adapters (default: the active ones), of which one at most has a copy."""
        names = [n for n in (self.active if adapters is None else adapters) if n in self.modules_to_save]
        return self.modules_to_save[names[0]] if names else self.original_module

    replacement = current

    def forward(self, *args, **kwargs):
        if self.rows is None:
            return self.current()(*args, **kwargs)
        if len(args) != 1 or kwargs:
            raise ValueError(
                "adapter_names cannot split the batch of a module in modules_to_save that takes more than one tensor: "
                f"{type(self.original_module).__name__}"
            )
        return by_rows(args[0], self.rows, lambda x, name: self.current([name] if name != BASE else [])(x))

    def __getattr__(self, name):  # the model may read, say, a head's weight
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.current(), name)
