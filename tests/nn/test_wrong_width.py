"""The error for an input of the wrong width names the input, for every layer."""

import pytest
import torch
from torch import nn

from pypeft_fast.nn import BitFitLinear, Bottleneck, IA3Linear, LoRALinear
from tests.device import DEVICE

LAYERS = {
    "LoRA": lambda linear: LoRALinear.from_linear(linear, r=2),
    "LoRA with dropout": lambda linear: LoRALinear.from_linear(linear, r=2, lora_dropout=0.5),
    "DoRA": lambda linear: LoRALinear.from_linear(linear, r=2, use_dora=True),
    "IA3": IA3Linear.from_linear,
    "IA3, feedforward": lambda linear: IA3Linear.from_linear(linear, feedforward=True),
    "BitFit": BitFitLinear.from_linear,
    "bottleneck": lambda linear: Bottleneck(10, 6, 4, device=DEVICE),
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_error_for_a_wrong_width_names_x(name, grad):
    layer = LAYERS[name](nn.Linear(10, 6, device=DEVICE))
    for shape in ((4, 7), (2, 3, 11), (7,)):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError) as caught:
            layer(torch.randn(shape, device=DEVICE))
        assert ": x has shape " in str(caught.value) and "expected (.., 10)" in str(caught.value)
