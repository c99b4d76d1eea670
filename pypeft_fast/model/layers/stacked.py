"""Several LoRA adapters of one layer as a single one of all their ranks: their updates add up."""

import torch


def stacked(adapters):
    """(lora_A [R, K], scaling * lora_B [N, R]) from each adapter's (lora_A, lora_B, scaling), R the sum of ranks."""
    A = torch.cat([lora_A for lora_A, _, _ in adapters])
    B = torch.cat([scaled(lora_B, scaling) for _, lora_B, scaling in adapters], dim=1)
    return A, B


def scaled(lora_B, scaling):
    """scaling * lora_B, in float32 for a half-precision lora_B: not rounded before it is used."""
    return lora_B.to(torch.promote_types(lora_B.dtype, torch.float32)) * scaling
