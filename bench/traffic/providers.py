"""The implementations whose forward and backward pass is counted: {name: a function from a Shape to a Step}."""

import dataclasses

import torch

from . import eager, interpreted, published
from .interpreted import IA3, IA3_FEEDFORWARD, Method

F32 = torch.float32
LORA_PROVIDERS = {
    "PEFT default, bf16 autocast": lambda s: eager.peft_lora(s, F32, autocast=True),
    "PEFT default, no autocast": lambda s: eager.peft_lora(s, F32),
    "PEFT bf16 adapters": lambda s: eager.peft_lora(s),
    "addmm style, no dropout": eager.addmm,
    "LoRAFusion": published.lorafusion,
    "ours": interpreted.ours,
    "ours, float32 adapters": lambda s: interpreted.ours(s, Method("lora", adapter=F32)),
    "ours, no dropout": lambda s: interpreted.ours(s, Method("lora", p=0.0)),
    "ours, vendor's GEMM onto a pass": lambda s: interpreted.by_vendor(s, kernel="triton+blas"),
    "ours, vendor's GEMM": interpreted.by_vendor,
    "ours, vendor's GEMM, no dropout": lambda s: interpreted.by_vendor(s, Method("lora", p=0.0)),
    "ours, r = 64": lambda s: interpreted.ours(dataclasses.replace(s, r=64)),
}
IA3_PROVIDERS = {
    "PEFT default": lambda s: eager.peft_ia3(s, False, F32),
    "PEFT bf16": lambda s: eager.peft_ia3(s, False),
    "ours": lambda s: interpreted.ours(s, IA3),
    "PEFT default, feedforward": lambda s: eager.peft_ia3(s, True, F32),
    "PEFT bf16, feedforward": lambda s: eager.peft_ia3(s, True),
    "ours, feedforward": lambda s: interpreted.ours(s, IA3_FEEDFORWARD),
}
