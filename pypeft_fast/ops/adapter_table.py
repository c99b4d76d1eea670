"""AdapterTable: the adapters of a batch's rows, which the C++ library for CPUs keeps between calls.

PyTorch takes longer to hand over two tensors for each of 64 adapters than the products of a small layer take. So the
adapters are handed over once, and a call names the table. The table has the adapters' own tensors and not copies: a
call sees their data, shapes and dtypes as they are at its time.
"""

import weakref

from torch._C import _AutoDispatchBelowAutograd

from .. import _library, _native
from .._derivative import PLAIN, bind_derivative
from ..frozen.op import TRAILING
from ..frozen.operand import crossed, stored
from .multi_lora_forward import multi_lora_forward


def _defined(name, arguments):
    op = _library.define(name, name + arguments)
    bind_derivative(name, op)
    return op


_make = _defined("adapter_table_cpu", "(Tensor[] lora_A, Tensor[] lora_B, float[] scalings, float[] ps) -> int")
_linear = _defined(
    "multi_lora_linear_of_table_cpu",
    "(Tensor x, Tensor weight, Tensor? bias, int table, Tensor adapter_index, Tensor? seeds" + TRAILING + ") -> Tensor",
)


class AdapterTable:
    """n adapters, as multi_lora_forward takes them."""

    def __init__(self, lora_A: list, lora_B: list, scalings: list, ps: list):
        self._adapters = lora_A, lora_B, scalings, ps
        with _AutoDispatchBelowAutograd():
            self._number = _make._op(*self._adapters)
        weakref.finalize(self, _native.tables.release_table, self._number)

    @classmethod
    def of(cls, lora_A, lora_B, scalings, ps):
        """A table, or None if the adapters are on another device or the library is not there."""
        if _native.tables is None or not lora_A[0].is_cpu:
            return None
        return cls(lora_A, lora_B, list(map(float, scalings)), ps)

    def holds(self) -> bool:
        """Whether every tensor is on the CPU, with the dtype and the bytes that it had when the table was made."""
        return _native.tables.table_holds(self._number)

    def linear(self, x, weight, bias, index, seeds):
        """y of multi_lora_forward; None if its kernel "cpu" does not run this call, or refuses the arguments."""
        if not multi_lora_forward.goes_to_cpu(x):
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
                y = _linear._op(x, weight, bias, self._number, index, seeds, *rest)
        except RuntimeError:  # the op's own check then says what is wrong
            return None
        multi_lora_forward.record("cpu")
        return y
