"""A base model's layers as an adapter's files describe them: names and shapes, without the base model's weights.

The tensors of an adapter name its layers and have the layers' sizes. So a combination of adapters needs neither the
base model nor its config.
"""

import re

import torch
from torch import nn

from ..errors import UserError

TENSOR = re.compile(r"base_model\.model\.(?P<layer>.+)\.(?P<kind>lora_A\.weight|lora_B\.weight|ia3_l)")


def hollow_base(shapes: dict[str, list[int]]) -> nn.Module:
    """Modules with the names of an adapter's layers, each an nn.Linear [N, K] whose weight is one zero in memory.

    shapes: {name of a tensor: its shape}, of one or several adapters. IA3's vector has only one of N and K; the other
    one is 1.

    UserError for a tensor that is no matrix of LoRA and no vector of IA3 of a linear layer.
    """
    layers: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        match = TENSOR.fullmatch(name)
        if match is None or len(shape) != 2 or "base_layer" in match["layer"]:
            raise UserError(
                f"the tensor {name} {list(shape)} is no matrix of LoRA and no vector of IA3 in a linear layer; "
                "combined are adapters of linear layers"
            )
        sizes = layers.setdefault(match["layer"], {})
        if match["kind"] == "lora_A.weight" or match["kind"] == "ia3_l" and shape[0] == 1:
            sizes["in_features"] = shape[1]
        else:
            sizes["out_features"] = shape[0]
    root = nn.Module()
    for name, sizes in layers.items():
        *parents, last = name.split(".")
        parent = root
        for part in parents:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = getattr(parent, part)
        parent.add_module(last, _linear(**({"in_features": 1, "out_features": 1} | sizes)))
    return root


def _linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, bias=False, device="meta")
    layer.weight = nn.Parameter(torch.zeros(1).expand(out_features, in_features), requires_grad=False)
    return layer
