"""Autocast over layers in half precision, to either half-precision dtype, agrees with eager PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pypeft_fast as pf
from tests.device import DEVICE

K, N = 24, 17
HALVES = [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16), (torch.bfloat16, torch.bfloat16)]


def lora(**options):
    module = pf.nn.LoRALinear(K, N, r=4, **options)
    nn.init.normal_(module.lora_B)
    return module


LAYERS = {
    "lora": lora,
    "lora dropout": lambda: lora(lora_dropout=0.3),
    "dora": lambda: lora(use_dora=True),
    "dora dropout": lambda: lora(use_dora=True, lora_dropout=0.3),
    "ia3": lambda: pf.nn.IA3Linear(K, N, init_ia3_weights=False),
    "ia3 feedforward": lambda: pf.nn.IA3Linear(K, N, feedforward=True, init_ia3_weights=False),
    "bitfit": lambda: pf.nn.BitFitLinear(K, N),
    "bottleneck": lambda: pf.nn.Bottleneck(K, K, 4),
}


@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("layer_dtype,autocast", HALVES, ids=str)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_every_layer_takes_the_other_half_precision(name, layer_dtype, autocast, x_dtype, grad):
    module, x = LAYERS[name]().to(layer_dtype), torch.randn(5, K).to(x_dtype)
    wide = LAYERS[name]()
    wide.load_state_dict(module.state_dict())
    results = []
    for run, enabled in ((module, True), (wide, False)):
        torch.manual_seed(1)
        with torch.autocast(DEVICE, autocast, enabled=enabled), torch.set_grad_enabled(grad):
            y = run(x if enabled else x.float())
        assert y.dtype == (autocast if enabled else torch.float32)
        trained = [p for p in run.parameters() if p.requires_grad]
        results.append((y, *(torch.autograd.grad(y.float().sum(), trained) if grad else ())))
        assert not grad or all(g.dtype == p.dtype for g, p in zip(results[-1][1:], trained, strict=True))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item() + 1e-6)


@pytest.mark.parametrize("feedforward", [False, True])
def test_ia3_multiplies_by_the_factors_as_they_are(feedforward):
    """Neither half-precision dtype is cast to the other: 1e-7 underflows in float16."""
    x, W = torch.randn(5, K), torch.randn(N, K)
    l = torch.full((K if feedforward else N,), 1e-7).bfloat16()  # noqa: E741
    with torch.autocast(DEVICE, torch.float16):
        y = pf.ia3_linear(1000 * x, W, l, feedforward=feedforward)
    assert y.dtype == torch.float16 and y.any()
    expected = F.linear(1000 * x, W) * 1e-7
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
