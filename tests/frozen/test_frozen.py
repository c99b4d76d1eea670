"""The frozen operand: its values, the modules that it is read from, and every function that accepts it."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import pypeft_fast as pf
from pypeft_fast.frozen.formats import FORMATS

W = torch.randn(6, 8)


def test_a_dense_weight_is_shared():
    frozen = pf.Frozen("dense", (W,))
    assert frozen.shape == (6, 8) and frozen.dtype == torch.float32 and frozen.device == W.device
    assert frozen.dequantize().data_ptr() == W.data_ptr()
    assert repr(frozen) == "Frozen('dense', shape=(6, 8), dtype=torch.float32, device=cpu)"


@pytest.mark.parametrize(
    "arguments,error,words",
    [
        (("nf5", (W,)), ValueError, f"format='nf5' is not known; choose one of {', '.join(FORMATS)}$"),
        (("dense", (W, W)), ValueError, "2 tensors; format 'dense' has 1: weight"),
        (("dense", (W,), (8, 6)), ValueError, r"weight has shape \(6, 8\), expected \(8, 6\)"),
        (("dense", (W[0],)), ValueError, r"shape=\(8,\) must be \(N, K\)"),
        (("dense", (W.int(),)), TypeError, "weight is torch.int32"),
        (("dense", (W,), None, torch.bfloat16), TypeError, "weight is torch.float32, dtype=torch.bfloat16"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        pf.Frozen(*arguments)


def test_frozen_of_linear_and_conv1d():
    linear, conv = nn.Linear(8, 6), Conv1D(6, 8)
    assert pf.frozen_of(linear).tensors[0] is linear.weight
    found = pf.frozen_of(conv)
    assert found.shape == (6, 8) and found.tensors[0].data_ptr() == conv.weight.data_ptr()
    torch.testing.assert_close(torch.ones(8) @ found.dequantize().t() + conv.bias, conv(torch.ones(8)))


class _Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "module,words",
    [
        (_Doubled(8, 6), "module is a _Doubled"),
        (nn.Embedding(8, 6), "module is a Embedding"),
        (nn.MultiheadAttention(8, 2).out_proj, "NonDynamicallyQuantizableLinear"),
        (W, "module is a Tensor"),
    ],
)
def test_modules_without_a_frozen_weight_are_refused(module, words):
    with pytest.raises(TypeError, match=words):
        pf.frozen_of(module)


A, B, b, m = torch.randn(2, 8), torch.randn(6, 2), torch.randn(6), torch.rand(6) + 0.5
FUNCTIONS = {
    "lora_linear": lambda x, W: pf.lora_linear(x, W, A, B, b),
    "dora_linear": lambda x, W: pf.dora_linear(x, W, A, B, m, b),
    "ia3_linear": lambda x, W: pf.ia3_linear(x, W, m, b),
    "lora_gated_linear": lambda x, W: pf.lora_gated_linear(x, x + 1, W, A, B, b),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("records", [True, False])
@pytest.mark.parametrize("compiled", [False, True])
def test_functions_accept_a_frozen_weight(name, records, compiled):
    function = FUNCTIONS[name]
    if compiled:
        torch.compiler.reset()
        function = torch.compile(function, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 8, requires_grad=records)
    y, expected = function(x, pf.Frozen("dense", (W,))), FUNCTIONS[name](x, W)
    torch.testing.assert_close(y, expected)
    if records:
        torch.testing.assert_close(*(torch.autograd.grad(t.sum(), x)[0] for t in (y, expected)))


def test_a_layer_over_a_conv1d_shares_its_weight():
    conv = Conv1D(6, 8)
    nn.init.normal_(conv.bias)
    x = torch.randn(3, 8)
    for kind in (pf.nn.LoRALinear, pf.nn.IA3Linear, pf.nn.BitFitLinear):
        layer = kind.from_linear(conv)
        assert layer.weight.data_ptr() == conv.weight.data_ptr() and (layer.in_features, layer.out_features) == (8, 6)
        torch.testing.assert_close(layer(x), conv(x))
