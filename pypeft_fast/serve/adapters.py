"""The adapters of a server by the names that requests use: loading, replacing and removing while requests run.

A request keeps the adapter that its name meant when the request came. A removed or replaced adapter serves the requests
that have it, and is deleted from the model when the last of them has ended. The model's own names for the adapters are
numbers, so that an adapter and its replacement are in the model at the same time.
"""

import itertools
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

import pypeft_fast

from ..finetune.adapters.files import check_files
from ..finetune.chat_template import template_in
from ..finetune.errors import UserError, as_user_error
from ..finetune.library_errors import LIBRARY_ERRORS
from .errors import ApiError, unknown_model
from .limits import Limits
from .names import check_name
from .servable import check_servable

BASE = "__base__"  # in adapter_names: a row without an adapter


@dataclass(eq=False)
class Adapter:
    """name: of the requests. inner: of the model, BASE for the base model. template: the chat template with which it
    was trained, None for the tokenizer's. users: requests that have it and run."""

    name: str
    inner: str
    template: str | None = None
    users: int = 0
    created: int = field(default_factory=lambda: int(time.time()))


class Adapters:
    """A base model and its adapters. `load` and `sweep` change the model: only the thread that runs it calls them; the
    other methods may be called from any thread."""

    def __init__(self, base, base_name: str, limits: Limits):
        self.model = base.eval()
        self.base = Adapter(base_name, BASE)
        self._limits = limits
        self._named: dict[str, Adapter] = {}
        self._retired: list[Adapter] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def all(self) -> list[Adapter]:
        """The base model, then the adapters in the order of loading."""
        with self._lock:
            return [self.base, *self._named.values()]

    def find(self, name: str) -> Adapter:
        """ApiError 404 for an unknown name."""
        found = {adapter.name: adapter for adapter in self.all()}
        if name not in found:
            raise unknown_model(name, list(found))
        return found[name]

    @property
    def has_retired(self) -> bool:
        """Whether `sweep` has an adapter to delete."""
        with self._lock:
            return any(not adapter.users for adapter in self._retired)

    def acquire(self, name: str) -> Adapter:
        """`find`, for a request; `release` ends the request's use."""
        while True:
            found = self.find(name)
            with self._lock:
                if found is self.base or self._named.get(name) is found:  # else removed since
                    found.users += 1
                    return found

    def release(self, adapter: Adapter) -> None:
        with self._lock:
            adapter.users -= 1

    def remove(self, name: str) -> None:
        """New requests get 404 from now on. ApiError: 404 for an unknown name, 400 for the base model."""
        if self.find(name) is self.base:
            raise ApiError(400, f"{name!r} is the base model; only adapters can be removed", param="model")
        with self._lock:
            self._retired += [self._named.pop(name)] if name in self._named else []

    def check_new(self, name: str) -> None:
        """ApiError if no adapter can be loaded under this name: no name, the base model's, or no room for another."""
        check_name(name)
        with self._lock:
            if name == self.base.name:
                raise ApiError(409, f"{name!r} is the name of the base model; give the adapter another", param="model")
            held = len(self._named) + len(self._retired)  # a replaced adapter stays while a request uses it
            if held >= self._limits.adapters + (name in self._named):
                raise ApiError(
                    409,
                    f"{held} adapters are loaded, and this server has room for no more; remove one first, "
                    "or start it with a larger --max-adapters",
                    code="adapters_full",
                )

    def load(self, name: str, folder: Path) -> bool:
        """Loads an adapter, and returns whether it has replaced another one of this name.

        ApiError as from `check_new`. UserError: the files are damaged or do not fit, the method cannot serve rows of
        different adapters, or the adapter's logits are not finite; the model then is as before.
        """
        self.check_new(name)
        check_files(folder)
        new = Adapter(name, f"a{next(self._numbers)}", template_in(folder))
        try:
            with as_user_error(f"`adapter` {folder.name} cannot be loaded", LIBRARY_ERRORS):
                check_servable(folder)
                if isinstance(self.model, pypeft_fast.PeftModel):
                    self.model.load_adapter(folder, new.inner)
                else:
                    self.model = pypeft_fast.PeftModel.from_pretrained(self.model, folder, adapter_name=new.inner)
            self.model.eval()
            self._try(new, folder)
        except UserError:
            if new.inner in getattr(self.model, "peft_config", {}):  # the load may have failed halfway
                self._delete(new)
            raise
        with self._lock:
            old = self._named.pop(name, None)
            self._named[name] = new
            self._retired += [old] if old else []
        return old is not None

    def _try(self, adapter: Adapter, folder: Path) -> None:
        """UserError if the adapter cannot run in a batch with rows of others, or gives logits that are not finite."""
        ids = torch.zeros(2, 2, dtype=torch.int64, device=self.model.device)
        with (
            as_user_error(f"`adapter` {folder.name} cannot share a batch with others", LIBRARY_ERRORS),
            torch.no_grad(),
        ):
            logits = self.forward([adapter, self.base], input_ids=ids).logits
        if not logits.isfinite().all():
            raise UserError(f"`adapter` {folder.name} gives logits that are not finite; train it again")

    def forward(self, adapters: list[Adapter], **inputs):
        """The model's output for a batch, each row with its own adapter."""
        if not getattr(self.model, "peft_config", None):
            return self.model(**inputs)
        return self.model(**inputs, adapter_names=[adapter.inner for adapter in adapters])

    def sweep(self) -> list[str]:
        """Deletes from the model the removed adapters that no request has; returns the names that have no adapter
        now."""
        with self._lock:
            free = [adapter for adapter in self._retired if not adapter.users]
            self._retired = [adapter for adapter in self._retired if adapter.users]
            used = {adapter.name for adapter in (*self._named.values(), *self._retired)}
        for adapter in free:
            self._delete(adapter)
        return sorted({adapter.name for adapter in free} - used)

    def _delete(self, adapter: Adapter) -> None:
        if len(self.model.peft_config) == 1:
            self.model = self.model.unload()  # a model without adapters takes the next adapter of any method
        else:
            self.model.delete_adapter(adapter.inner)
