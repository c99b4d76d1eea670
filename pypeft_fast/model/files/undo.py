"""A model gets back its modules, attributes and values if a change of it fails, or is interrupted, midway."""

import contextlib
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import peft
import torch
from torch import nn

from .names import PREFIX, plain

_TABLES = (dict, OrderedDict, defaultdict)
_LEAVES = (type(None), bool, str, int, float)
_PLAIN = (torch.Tensor, nn.Parameter)


@contextlib.contextmanager
def undone_on_error(model: nn.Module, overwritten: Iterable[torch.Tensor] = ()) -> Iterator[None]:
    """After an error in the block the model is as before, and so is the state of the random number generator.

    Modules, containers, configs, and which tensor is where are restored without copies of tensors. overwritten: the
    tensors into which the block writes in place; their values are copied, and restored too.
    """
    record = _Record()
    record.add(model)
    values = [(tensor, tensor.detach().clone()) for tensor in overwritten if not tensor.is_meta]
    random_state = torch.get_rng_state()
    try:
        yield
    except BaseException:
        record.restore()
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        torch.set_rng_state(random_state)
        raise


def written_in_place(model: nn.Module, adapter_name: str, names: Iterable[str]) -> list[torch.Tensor]:
    """The model's tensors into which PEFT may write when it loads an adapter's file, whose tensors have these names:
    the adapter's own, if the model has it, and tensors that a file holds under the model's name, such as embeddings."""
    names, found = set(names), {}
    is_base = not isinstance(model, peft.PeftModel)
    for own, tensor in (*model.named_parameters(), *model.named_buffers()):
        own = plain(f"{PREFIX}{own}" if is_base else own)
        if own in names or (not is_base and adapter_name in own.split(".")):
            found[id(tensor)] = tensor
    # PEFT keeps the modules of an inactive adaption prompt outside of the model's own.
    for module in getattr(getattr(model, "base_model", None), "_cached_adapters", {}).get(adapter_name, ()):
        found.update((id(tensor), tensor) for tensor in module.parameters())
    return list(found.values())


class _Tensor(NamedTuple):
    tensor: torch.Tensor
    data: torch.Tensor  # shares the memory
    requires_grad: bool


class _Record:
    """What each module, plain container, config and tensor that a model reaches has held."""

    def __init__(self):
        self._seen: set[int] = set()
        self._objects: list[tuple[object, type, dict]] = []
        self._containers: list[tuple[object, object]] = []
        self._tensors: list[_Tensor] = []

    def add(self, value) -> None:
        kind = type(value)
        if id(value) in self._seen:
            return
        # A ScriptModule's state is in C++. model_type: a config of transformers, which PEFT changes.
        is_module = isinstance(value, nn.Module) and not isinstance(value, torch.jit.ScriptModule)
        if is_module or isinstance(value, peft.PeftConfig) or hasattr(kind, "model_type"):
            self._seen.add(id(value))
            self._objects.append((value, kind, dict(value.__dict__)))
            self._add_all(value.__dict__.values())
        elif kind in _TABLES:
            self._seen.add(id(value))
            self._containers.append((value, kind.copy(value)))
            self._add_all(value.values())
        elif kind in (list, set):
            self._seen.add(id(value))
            self._containers.append((value, kind.copy(value)))
            self._add_all(value)
        elif kind is tuple:
            self._add_all(value)
        elif kind in _PLAIN:
            self._seen.add(id(value))
            self._tensors.append(_Tensor(value, value.data, value.requires_grad))

    def _add_all(self, values) -> None:
        for value in values:
            if type(value) not in _LEAVES:  # most values, which this spares a call
                self.add(value)

    def restore(self) -> None:
        for value, kind, attributes in self._objects:
            if type(value) is not kind:
                value.__class__ = kind
            value.__dict__.clear()
            value.__dict__.update(attributes)
        for container, content in self._containers:
            if isinstance(container, list):
                container[:] = content
            else:
                container.clear()
                container.update(content)
        for tensor, data, requires_grad in self._tensors:
            if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape or tensor.dtype != data.dtype:
                tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
