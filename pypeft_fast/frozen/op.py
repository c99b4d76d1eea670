"""An op with a frozen weight: its Python functions take a tensor or a `Frozen`, its schema tensors and a format name.

A schema has `Tensor weight`, the first tensor of the format, and ends with the format's name and the other tensors. For
a dense weight both are left out.
The other operands tell the shape [N, K].
"""

import torch

from .._op import OPS, Op
from .formats import FORMATS
from .operand import Frozen, crossed, stored

TRAILING = ", str? format=None, Tensor[]? scales=None"
# {argument: (the side N or K of the weight that it tells, the argument's dimension of that size)}; ia3_l: see _sides.
_TELLS = {"x": ("K", -1), "lora_A": ("K", -1), "lora_B": ("N", 0), "dY": ("N", -1)}


def _one(value):
    """A tensor, the first of a list of tensors, or None."""
    return next(iter(value), None) if isinstance(value, (list, tuple)) else value


class FrozenOp(Op):
    """`Op`, whose check, fake, formulas and kernels take a `Frozen` for `weight` where it is not dense."""

    def __init__(self, schema: str):
        super().__init__(schema, TRAILING)
        self._at = self._names.index("weight")
        # [(an argument's index, 0 for N or 1 for K, the dimension of that size)] in the order of `_sides`
        found = ((name, side == "K", dimension) for name, (side, dimension) in _TELLS.items() if name in self._names)
        self._told = [(self._names.index(name), int(is_K), dimension) for name, is_K, dimension in found]
        self._dtypes = [self._names.index(name) for name in ("x", "dY", "lora_A") if name in self._names]

    def crossing(self, args):
        """Replaces a `Frozen` by its tensors and its format name."""
        if type(args[self._at]) is not Frozen:
            return args
        weight, its = stored(args[self._at])
        return (*args[: self._at], weight, *args[self._at + 1 :], *crossed(*its))

    def given(self, args):
        """Replaces tensors and a format name by a `Frozen`."""
        if len(args) == len(self._names):
            return args
        args, (format, *scales) = args[: len(self._names)], args[len(self._names) :]
        if format is None or args[self._at] is None:
            return args
        tensors = (args[self._at], *(scales[0] or () if scales else ()))
        named = dict(zip(self._names, args, strict=True))
        weight = Frozen.beside(format, tensors, self._sides(named), self._dtype(named))
        return (*args[: self._at], weight, *args[self._at + 1 :])

    def tells(self, args):
        weight, shape = args[self._at], [None, None]
        if type(weight) is not Frozen:
            return False
        for index, side, dimension in self._told:
            value = args[index]
            if type(value) in (list, tuple):
                value = value[0] if value else None
            if value is None or shape[side] is not None:
                continue
            if value.dim() == 0:
                return False
            shape[side] = value.shape[dimension]
        dtype = next((args[index].dtype for index in self._dtypes if isinstance(args[index], torch.Tensor)), None)
        return shape[0] == weight.shape[0] and shape[1] == weight.shape[1] and dtype == weight.dtype

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

    def native_cuda(self, rejects=lambda *_: None, checks=False):
        super().native_cuda(self._of_native_formats(rejects), checks)

    def _of_native_formats(self, rejects):
        def of_these(*args):
            weight = args[self._at]
            if type(weight) is Frozen and not FORMATS[weight.format].native:
                return f"it cannot read weights of format {weight.format!r}"
            return rejects(*args)

        return of_these

    def takes(self, name, function):
        """A kernel that reads only dense weights gets a dequantised weight, which is freed after the call."""

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
