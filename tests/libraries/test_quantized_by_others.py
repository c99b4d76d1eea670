"""LoRA over frozen layers that torchao, HQQ and quanto quantise: fused around the layer's own product.

int4 of torchao needs a package that runs on GPUs only.
"""

from collections import Counter

import peft
import pytest
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from optimum import quanto
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

import pypeft_fast as pf

TARGETS = ("q", "v")


class Layers(nn.Module):
    """A trained layer before two layers to quantise: its gradient flows through both of them."""

    def __init__(self):
        super().__init__()
        self.first, self.q, self.v = nn.Linear(64, 128), nn.Linear(128, 192), nn.Linear(192, 128, bias=False)

    def forward(self, x):
        return self.v(torch.relu(self.q(self.first(x))))


def by_torchao(config):
    def quantized(model):
        quantize_(model, config(), filter_fn=lambda _, name: name in TARGETS)

    return quantized


def by_hqq(model):
    for name in TARGETS:
        config = BaseQuantizeConfig(nbits=4, group_size=64)
        setattr(model, name, HQQLinear(getattr(model, name), config, compute_dtype=torch.float32, device="cpu"))


def by_quanto(model):
    quanto.quantize(model, weights=quanto.qint8, include=list(TARGETS))
    quanto.freeze(model)


QUANTIZED = {
    "torchao int8": by_torchao(Int8WeightOnlyConfig),
    "torchao fp8": by_torchao(Float8WeightOnlyConfig),
    "HQQ 4 bits": by_hqq,
    "quanto int8": by_quanto,
}


def step(model, x):
    model.zero_grad()
    y = model(x)
    y.square().mean().backward()
    return {"y": y.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


@pytest.mark.parametrize("quantized", QUANTIZED.values(), ids=QUANTIZED)
def test_outputs_and_gradients_are_pefts_and_the_update_is_fused(quantized):
    torch.manual_seed(0)
    layers = Layers()
    quantized(layers)
    model = peft.get_peft_model(layers, peft.LoraConfig(r=8, target_modules=list(TARGETS), init_lora_weights=False))
    layers.first.weight.requires_grad_()
    x = torch.randn(32, 64)
    expected = step(model, x)
    assert sum("lora" in name for name in expected) == 4 and any("first" in name for name in expected)
    report = pf.fuse(model)
    with pf.recording() as ran:
        found = step(model, x)
    ops = Counter(op for op, _ in ran)
    assert all(ops[op] == 2 for op in ("lora_shrink", "lora_ds_db", "lora_dx", "lora_da"))
    (reason, count), *others = report.calls().items()
    assert reason.startswith("fused around the base: ") and count == 2 and not others
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.norm() > 0
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item(), msg=name)
