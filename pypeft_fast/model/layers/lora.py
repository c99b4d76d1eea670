"""LoRA and rsLoRA as a part of a layer (Hu et al., arXiv:2106.09685; arXiv:2312.03732)."""

import torch
import torch.nn.functional as F
from torch import nn

from ...autograd.lora import lora_linear, lora_linear_unchecked
from ...autograd.lora_sum import lora_sum_linear
from ...autograd.lora_update import lora_update
from ...nn.merge import lora_delta
from ...ops._check import ACTIVATIONS
from . import rules
from .facts import of_dropout, of_linear
from .part import Part


class LoRA(Part):
    """y = x W^T + b + scaling * (drop(x) A^T) B^T, with A [r, K], B [N, r] and p the dropout rate, 0 in eval mode."""

    __slots__ = ("A", "B", "p", "scaling")

    def __init__(self, A, B, scaling, p):
        self.A, self.B, self.scaling, self.p = A, B, scaling, p

    @classmethod
    def read(cls, layer, name):
        modules = layer._modules
        of_A, A, _ = of_linear(modules["lora_A"]._modules[name])
        of_B, B, _ = of_linear(modules["lora_B"]._modules[name])
        dropout = of_dropout(modules["lora_dropout"]._modules[name])
        part = cls(A, B, layer.scaling[name], dropout[1] if dropout[3] else 0.0)
        return (of_A, of_B, dropout, layer.cast_input_dtype_enabled), part

    @staticmethod
    def why_not(found, is_loaded=True) -> str | None:
        of_A, of_B, dropout, _ = found
        reason = (
            rules.why_not_submodule(of_A[0], "lora_A", (nn.Linear,))
            or rules.why_not_submodule(of_B[0], "lora_B", (nn.Linear,))
            or rules.why_not_dropout(dropout, "lora_dropout")
        )
        if reason is not None:
            return reason
        (_, A, bias_A), (_, B, bias_B) = of_A, of_B
        reason = rules.why_not_tensor(A, "lora_A", is_loaded) or rules.why_not_tensor(B, "lora_B", is_loaded)
        if reason is None and (bias_A is not None or bias_B is not None):
            reason = "lora_bias=True"
        if reason is None and (len(A[-1]) != 2 or len(B[-1]) != 2 or A[-1][0] != B[-1][1]):
            reason = "lora_A and lora_B are partitioned"
        return reason

    @staticmethod
    def why_not_beside(found, x) -> str | None:
        (_, A, _), (_, B, _), _, casts = found
        reason = rules.why_not_dtype(x, A, "lora_A") or rules.why_not_dtype(x, B, "lora_B")
        if reason is None and not A[3] == B[3] == x[3]:
            reason = "the adapter is on another device"
        if reason is None and x[1] != A[1] and not casts:
            reason = "casting of the input is switched off"
        return reason

    @staticmethod
    def why_not_together(found, x) -> str | None:
        return None

    @staticmethod
    def why_not_rows(adapters, x) -> str | None:
        if x[4] < 2:
            return "adapter_names with an input that has no rows"
        if any(method is not LoRA for method, _ in adapters):
            return "adapter_names with an adapter that is not plain LoRA"
        if len({(of_A[1][1], of_B[1][1]) for _, (of_A, of_B, *_) in adapters}) > 1:
            return "adapter_names with adapters of several dtypes"
        return None

    def linear(self, x, weight, bias, is_plain):
        scaling = self.scaling
        if is_plain and (type(scaling) is float or type(scaling) is int):
            return lora_linear_unchecked(x, weight, bias, self.A, self.B, float(scaling), float(self.p))
        return lora_linear(x, weight, self.A, self.B, bias, scaling=scaling, dropout_p=self.p)

    def around(self, y, x):
        """y plus the update, in y's dtype. The update is computed in plain PyTorch if y is a tensor subclass, or if the
        op does not accept y's dtype, or the adapter's dtype together with y's."""
        if type(y) is torch.Tensor and y.dtype in ACTIVATIONS and all(_fits(t, y) for t in (self.A, self.B)):
            return lora_update(y, x.to(y.dtype), self.A, self.B, scaling=self.scaling, dropout_p=self.p)
        dropped = F.dropout(x.to(self.A.dtype), self.p)
        return (y + F.linear(F.linear(dropped, self.A), self.B) * self.scaling).to(y.dtype)

    def plus(self, others):
        """One adapter whose update is the sum of all updates: A [R, K], scaling * B [N, R], R the sum of the ranks."""
        parts = self, *others
        if any(part.p for part in parts):
            return LoRASum(parts)
        return LoRA(torch.cat([part.A for part in parts]), torch.cat([_scaled(part) for part in parts], 1), 1.0, 0.0)

    def merged(self, total, frozen):
        total += lora_delta(self.A, self.B, self.scaling)
        return total


class LoRASum(Part):
    """The updates of several adapters, each with a mask of its own."""

    __slots__ = ("parts",)

    def __init__(self, parts):
        self.parts = parts

    def linear(self, x, weight, bias, is_plain):
        A, B = [part.A for part in self.parts], [part.B for part in self.parts]
        options = dict(scalings=[part.scaling for part in self.parts], dropout_ps=[part.p for part in self.parts])
        return lora_sum_linear(x, weight, A, B, bias, **options)

    def around(self, y, x):
        for part in self.parts:
            y = part.around(y, x)
        return y


def _scaled(part):
    """scaling * B, in float32 for a half-precision B, to avoid a rounding before the product."""
    return part.B.to(torch.promote_types(part.B.dtype, torch.float32)) * part.scaling


def _fits(parameter, y):
    return parameter.dtype == y.dtype or parameter.dtype == torch.float32 and y.dtype in rules.HALF
