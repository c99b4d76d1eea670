"""What is timed: shapes of real layers, and the layers side by side on the same frozen weight, adapter and input."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

import pypeft_fast as pf


@dataclass(frozen=True)
class Case:
    M: int  # tokens
    K: int  # in_features
    N: int  # out_features
    r: int = 16
    p: float = 0.05
    dtype: torch.dtype = torch.float32

    def __str__(self):
        return f"{self.M}x{self.K}x{self.N} r={self.r} p={self.p:g} {self.dtype}".replace("torch.", "")


CASES = [
    Case(512, 576, 576),  # SmolLM2-135M: attention
    Case(512, 576, 1536),  # its gate and up
    Case(512, 1536, 576),  # its down
    Case(512, 576, 1536, p=0.0),
    Case(512, 576, 1536, dtype=torch.bfloat16),
    Case(256, 2048, 2048),  # a 1B model: attention
]


class Eager(nn.Module):
    """The formula as one would type it, on the parameters of a LoRALinear."""

    def __init__(self, ours):
        super().__init__()
        self.weight, self.bias, self.lora_A, self.lora_B = ours.weight, ours.bias, ours.lora_A, ours.lora_B
        self.scaling, self.p = ours.scaling, ours.lora_dropout

    def forward(self, x):
        low = F.dropout(x.to(self.lora_A.dtype), self.p, self.training) @ self.lora_A.t() @ self.lora_B.t()
        return F.linear(x, self.weight, self.bias) + (self.scaling * low).to(x.dtype)


def peft_layer(linear, ours):
    """PEFT's layer over the same linear, with the same adapter."""
    config = LoraConfig(r=ours.r, lora_alpha=ours.lora_alpha, lora_dropout=ours.lora_dropout, target_modules=["0"])
    layer = get_peft_model(nn.Sequential(linear), config).base_model.model[0]
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(ours.lora_A)
        layer.lora_B["default"].weight.copy_(ours.lora_B)
    return layer


def layers(case):
    """{name: (layer, its lora_A, its lora_B)}, all in training mode, over one frozen weight."""
    linear = nn.Linear(case.K, case.N, dtype=case.dtype)
    ours = pf.nn.LoRALinear.from_linear(linear, r=case.r, lora_alpha=2 * case.r, lora_dropout=case.p)
    nn.init.normal_(ours.lora_B, std=0.02)  # it starts at zero, where an error would not show
    peft = peft_layer(linear, ours)
    return {
        "eager": (Eager(ours), ours.lora_A, ours.lora_B),
        "PEFT": (peft, peft.lora_A["default"].weight, peft.lora_B["default"].weight),
        "ours": (ours, ours.lora_A, ours.lora_B),
    }
