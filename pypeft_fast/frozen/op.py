"""An op over a frozen weight: its functions take it as a tensor or a `Frozen`, its schema as tensors and a name.

A schema holds `Tensor weight`, the first tensor of any format, and ends with the format's name and its other tensors;
neither of a dense weight.
The shape [N, K] is that of the operands beside it.
"""

import torch

from .._op import OPS, Op
from .formats import FORMATS
from .operand import Frozen, crossed, stored

TRAILING = ", str? format=None, Tensor[]? scales=None"
# {argument: (whether it tells N or K of the weight [N, K], its dimension that does)}; ia3_l tells either.
_TELLS = {"x": ("K", -1), "lora_A": ("K", -1), "lora_B": ("N", 0), "dY": ("N", -1)}


def _one(value):
    """A tensor, the first of a list of tensors, or None."""
    return next(iter(value), None) if isinstance(value, (list, tuple)) else value


class FrozenOp(Op):
    """`Op`, whose check, fake, formulas and kernels take a `Frozen` for `weight` where it is not dense."""

    def __init__(self, schema: str):
        super().__init__(schema, TRAILING)
        self._at = self._names.index("weight")

    def crossing(self, args):
        """The arguments as the schema takes them."""
        if type(args[self._at]) is not Frozen:
            return args
        weight, its = stored(args[self._at])
        return (*args[: self._at], weight, *args[self._at + 1 :], *crossed(*its))

    def given(self, args):
        """The arguments as the op's functions take them."""
        if len(args) == len(self._names):
            return args
        args, (format, *scales) = args[: len(self._names)], args[len(self._names) :]
        if format is None or args[self._at] is None:
            return args
        tensors = (args[self._at], *(scales[0] or () if scales else ()))
        named = dict(zip(self._names, args, strict=True))
        weight = Frozen.beside(format, tensors, self._sides(named), self._dtype(named))
        return (*args[: self._at], weight, *args[self._at + 1 :])

    def is_native(self, args):
        return len(args) == len(self._names) or FORMATS[args[len(self._names)] or "dense"].native

    @staticmethod
    def _sides(named):
        sides = {}
        for name, (side, dimension) in _TELLS.items():
            value = _one(named.get(name))
            if value is not None and value.dim() > 0:
                sides.setdefault(side, value.shape[dimension])
        if "ia3_l" in named:
            sides.setdefault("K" if named["feedforward"] else "N", named["ia3_l"].shape[0])
        return sides

    @staticmethod
    def _dtype(named):
        return next(named[name].dtype for name in ("x", "dY", "lora_A") if named.get(name) is not None)

    def native_cpu(self, rejects=lambda *_: None, checks=False):
        super().native_cpu(self._of_native_formats(rejects), checks)

    def native_cuda(self, rejects=lambda *_: None):
        super().native_cuda(self._of_native_formats(rejects))

    def _of_native_formats(self, rejects):
        def of_these(*args):
            weight = args[self._at]
            if type(weight) is Frozen and not FORMATS[weight.format].native:
                return f"it reads no weights of format {weight.format!r}"
            return rejects(*args)

        return of_these

    def takes(self, name, function):
        """A kernel that reads dense weights alone gets a dequantised one, which lives as long as its call."""

        def dense(*args):
            weight = args[self._at]
            if type(weight) is Frozen:
                if name == "reference":
                    weight = weight.dequantize(torch.promote_types(weight.dtype, torch.float32))
                else:
                    weight = OPS["dequantize"].beside(name, weight)
                args = (*args[: self._at], weight, *args[self._at + 1 :])
            return function(*args)

        return dense
