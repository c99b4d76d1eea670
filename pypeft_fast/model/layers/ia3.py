"""IA3 as a part of a layer (Liu et al., arXiv:2205.05638)."""

from functools import reduce

import torch

from . import facts, rules
from .part import Part


class IA3(Part):
    """y = (x W^T + b) * l with l [N], or y = (x * l) W^T + b with l [K] in a layer that PEFT calls feedforward."""

    __slots__ = ("inputs", "outputs")

    def __init__(self, inputs, outputs):
        self.inputs, self.outputs = inputs, outputs

    @classmethod
    def read(cls, layer, name):
        ia3_l = facts.tensor_of(layer._modules["ia3_l"], name)
        found = facts.of_tensor(ia3_l)
        if len(found) == 1:
            return found, cls(None, None)
        return found, cls(ia3_l.flatten(), None) if layer.is_feedforward else cls(None, ia3_l.flatten())

    @staticmethod
    def why_not(found, is_loaded=True) -> str | None:
        return rules.why_not_tensor(found, "ia3_l", is_loaded)

    @staticmethod
    def why_not_beside(found, x) -> str | None:
        reason = rules.why_not_dtype(x, found, "ia3_l")
        return reason or ("ia3_l is on another device" if found[3] != x[3] else None)

    @staticmethod
    def why_not_together(found, x) -> str | None:
        return None

    def plus(self, others):
        """The factors of the adapters are multiplied."""
        parts = self, *others
        if self.outputs is None:
            return IA3(reduce(torch.mul, [part.inputs for part in parts]), None)
        return IA3(None, reduce(torch.mul, [part.outputs for part in parts]))
