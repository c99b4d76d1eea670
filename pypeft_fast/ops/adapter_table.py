"""AdapterTable: the adapters of a batch's rows, which the C++ library for CPUs keeps between calls.

PyTorch takes longer to hand over two tensors for each of 64 adapters than the products of a small layer take. So the
adapters are handed over once, and a call names the table. The table has the adapters' own tensors and not copies: a
call sees their data as they are at its time.
"""

import gc
import weakref

import torch
from torch._C import _AutoDispatchBelowAutograd, _len_torch_function_stack

from .. import _library, _native
from .._derivative import bind_derivative
from .._dispatcher import PLAIN
from ..frozen.op import TRAILING
from ..frozen.operand import crossed, stored
from .multi_lora_forward import multi_lora_forward

_DTYPE = torch.Tensor.dtype.__get__


def _defined(name, arguments):
    op = _library.define(name, name + arguments)
    bind_derivative(name, op)
    return op


_make = _defined("make_adapter_table_cpu", "(Tensor[] lora_A, Tensor[] lora_B, float[] scalings, float[] ps) -> int")
_linear = _defined(
    "multi_lora_linear_of_table_cpu",
    "(Tensor x, Tensor weight, Tensor? bias, int table, Tensor adapter_index, Tensor? seeds" + TRAILING + ") -> Tensor",
)


_tables: set[weakref.ref] = set()  # to those that the library has had; a WeakSet may not change while it is read


def _before_collection(phase, info):
    """Python's collector does not see who owns the library's tensors. So none is there during a full collection: else
    a parameter that leads to its own layer, as by a hook, would keep the model for ever."""
    if phase == "start" and info["generation"] == 2:
        for reference in list(_tables):
            table = reference()
            if table is not None:
                table.release()


class AdapterTable:
    """n adapters, as multi_lora_forward takes them. The library gets them at the second call that it can run, since
    names that change with each batch have no second one. As long as it has them, torch.utils.swap_tensors refuses their
    tensors."""

    def __init__(self, lora_A: list, lora_B: list, scalings: list, ps: list):
        self._adapters = lora_A, lora_B, scalings, ps
        self._tensors = [*lora_A, *lora_B]
        self._dtypes = list(map(_DTYPE, self._tensors))
        self._number, self._has_been_called = None, False
        self._releases: list[weakref.finalize] = []

    def holds(self) -> bool:
        """Whether every tensor has the dtype that it had; in the library, also whether it lies where it lay."""
        if self._number is None:
            return list(map(_DTYPE, self._tensors)) == self._dtypes
        return _native.tables.table_holds(self._number)

    def linear(self, x, weight, bias, index, seeds):
        """y of multi_lora_forward; None if the library does not have the adapters, or not for such a call."""
        if _native.tables is None or _len_torch_function_stack() > 0 or not multi_lora_forward.goes_to_cpu(x):
            return None
        if not self._has_been_called:
            self._has_been_called = True
            return None
        rest = ()
        if type(weight) not in PLAIN:
            lora_A, lora_B, scalings, ps = self._adapters
            if not multi_lora_forward.tells((x, weight, bias, lora_A, lora_B, index, scalings, ps, seeds)):
                return None
            weight, its = stored(weight)
            rest = crossed(*its)
        try:
            with _AutoDispatchBelowAutograd():
                y = _linear._op(x, weight, bias, self._kept(), index, seeds, *rest)
        except RuntimeError:  # the op's own check then says what is wrong
            return None
        multi_lora_forward.record("cpu")
        return y

    def _kept(self) -> int:
        """The number of the library's table. RuntimeError if the library cannot have one."""
        number = self._number
        if number is None:
            if any(t.is_neg() or t._is_zerotensor() for t in self._tensors):
                raise RuntimeError("PyTorch would hand over copies")
            if _before_collection not in gc.callbacks:
                gc.callbacks.append(_before_collection)
            number = _make._op(*self._adapters)
            self._releases.append(weakref.finalize(self, _native.tables.release_table, number))
            self._number = number
            _tables.add(weakref.ref(self, _tables.discard))
        return number

    def release(self) -> None:
        """Takes the adapters back from the library, which gets them again at the next call."""
        self._number = None
        while self._releases:
            self._releases.pop()()
