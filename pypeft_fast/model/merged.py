"""The weight and the bias that a layer's adapters come to, in float32, rounded once."""

import torch

from ..nn.merge import lora_delta


@torch.no_grad()
def merged_weight(layer, names):
    """A new tensor in the layout of layer.weight; the layer is not merged."""
    W = layer.frozen_weight()
    total = W.to(torch.promote_types(W.dtype, torch.float32), copy=True)
    for name in names:
        if name in layer.lora_A:
            total += _update(layer, name)
    for name in names:
        if name in layer.ia3_l:
            l = layer.ia3_l[name].flatten().to(total.dtype)  # noqa: E741
            total *= l if layer.feedforward[name] else l[:, None]
    total = total.to(W.dtype)
    return total if W is layer.weight else total.t()  # a Conv1D's is [K, N]


def _update(layer, name):
    """What an adapter of LoRA or DoRA adds to the weight [N, K]."""
    W, scaling = layer.frozen_weight(), layer.scaling[name]
    delta = lora_delta(layer.lora_A[name].weight, layer.lora_B[name].weight, scaling)
    if name not in layer.lora_magnitude_vector:
        return delta
    wide = W.to(delta.dtype)
    factor = layer.lora_magnitude_vector[name].weight.to(delta.dtype) / torch.linalg.vector_norm(wide + delta, dim=1)
    return (factor[:, None] - 1) * wide + factor[:, None] * delta


@torch.no_grad()
def merged_bias(layer, names):
    """layer.bias itself if the adapters leave it alone."""
    bias = next((layer.bitfit_bias[name] for name in names if name in layer.bitfit_bias), layer.bias)
    factors = [layer.ia3_l[name].flatten() for name in names if name in layer.ia3_l and not layer.feedforward[name]]
    if bias is None or bias is layer.bias and not factors:
        return bias
    total = bias.to(torch.promote_types(bias.dtype, torch.float32), copy=True)
    for factor in factors:
        total *= factor.to(total.dtype)
    return total.to(layer.weight.dtype)
