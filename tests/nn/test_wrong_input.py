"""The errors for an input of the wrong width or type name the input; a bottleneck checks its options."""

import numpy as np
import pytest
import torch
from torch import nn

from pypeft_fast.nn import BitFitLinear, Bottleneck, IA3Linear, LoRALinear, MultiLoRALinear
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


@pytest.mark.parametrize("name", LAYERS)
def test_the_error_for_what_is_no_tensor_names_x(name):
    layer = LAYERS[name](nn.Linear(10, 6, device=DEVICE))
    for x in (np.zeros((4, 10), "float32"), [1.0], None):
        with pytest.raises(TypeError, match=rf": x is a {type(x).__name__}; give a tensor"):
            layer(x)


@pytest.mark.parametrize(
    "options,error,words",
    [
        (dict(activation="swish"), ValueError, "activation='swish' must be one of relu, silu, gelu, tanh"),
        (dict(activation=torch.relu), ValueError, "activation=<.*> must be one of"),
        (dict(activation=["relu"]), ValueError, "activation=.* must be one of"),
        (dict(scaling=None), TypeError, "scaling=None must be a number"),
        (dict(dropout="0.1"), TypeError, "dropout='0.1' must be a number"),
        (dict(dropout=1.0), ValueError, r"dropout p=1.0 must be in \[0, 1\)"),
    ],
)
def test_a_bottleneck_checks_its_options_when_it_is_made(options, error, words):
    with pytest.raises(error, match=f"Bottleneck: {words}"):
        Bottleneck(10, 6, 4, **options)


def test_numbers_of_numpy_are_numbers():
    layer = LoRALinear(4, 3, r=2, lora_alpha=np.float32(3), lora_dropout=np.float32(0.5), device=DEVICE)
    assert layer.scaling == 1.5
    bank = MultiLoRALinear(4, 3, max_adapters=1, max_rank=2, device=DEVICE)
    bank.add("a", layer.lora_A, layer.lora_B, scaling=np.float32(3), dropout=np.float64(0.5))
    bank.load_state_dict(bank.state_dict())
    assert bank.index(["a"]).tolist() == [0]
