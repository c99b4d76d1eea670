"""DoRA as a part of a layer (Liu et al., arXiv:2402.09353): LoRA with a trained norm for every row of the weight."""

import torch

from ...autograd.dora import dora_linear
from ...autograd.dora_norm import row_scale
from ...nn.merge import lora_delta
from . import facts, rules
from .lora import LoRA


class DoRA(LoRA):
    """y = g * (x (W + scaling B A)^T) + b with g = magnitude / |W + scaling B A|; magnitude [N]."""

    __slots__ = ("magnitude",)
    around = None  # |W + scaling B A| needs the weight

    @classmethod
    def read(cls, layer, name):
        of_lora, part = super().read(layer, name)
        module = layer._modules["lora_magnitude_vector"]._modules[name]
        part.magnitude = facts.tensor_of(module, "weight")
        if not layer.training:
            part.p = 0.0
        of_magnitude = facts.of_module(module), facts.of_tensor(part.magnitude)
        return (*of_lora, *of_magnitude, isinstance(part.scaling, torch.Tensor)), part

    @staticmethod
    def why_not(found, is_loaded=True) -> str | None:
        *of_lora, module, magnitude, scaling_is_a_tensor = found
        reason = LoRA.why_not(of_lora, is_loaded)
        reason = reason or rules.why_not_tensor(magnitude, "lora_magnitude_vector", is_loaded)
        if reason is None and module[1]:
            reason = "lora_magnitude_vector has hooks"
        if reason is None and scaling_is_a_tensor:
            reason = "DoRA with a scaling that is a tensor"
        return reason

    @staticmethod
    def why_not_beside(found, x) -> str | None:
        *of_lora, _, magnitude, _ = found
        return LoRA.why_not_beside(of_lora, x) or rules.why_not_dtype(x, magnitude, "lora_magnitude_vector")

    @staticmethod
    def why_not_together(found, x) -> str | None:
        return "several active adapters of which one is DoRA"

    def linear(self, x, weight, bias, is_plain):
        options = dict(scaling=self.scaling, dropout_p=self.p)
        return dora_linear(x, weight, self.A, self.B, self.magnitude, bias, **options)

    def merged(self, total, frozen):
        """Adds this adapter's update to total, then scales the rows of the sum by magnitude / |W + this update|, as in
        PEFT."""
        delta = lora_delta(self.A, self.B, self.scaling)
        total += delta
        total *= row_scale(self.magnitude.detach(), torch.linalg.vector_norm(frozen + delta, dim=1))[:, None]
        return total
