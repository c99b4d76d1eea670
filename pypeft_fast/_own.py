"""The public names that need PyTorch and no PEFT; all ops are registered once this is imported."""

from . import nn
from ._op import kernels, recording, using
from .autograd.dora import dora_linear
from .autograd.ia3 import ia3_linear
from .autograd.lora import lora_linear
from .autograd.lora_mlp import lora_gated_linear
from .autograd.multi_lora import multi_lora_linear
from .frozen import Frozen, frozen_of, quantize
from .ops import dequantize as _  # noqa: F401 - registers the op, which kernels of other ops look up by name

__all__ = [
    "Frozen",
    "dora_linear",
    "frozen_of",
    "ia3_linear",
    "kernels",
    "lora_gated_linear",
    "lora_linear",
    "multi_lora_linear",
    "nn",
    "quantize",
    "recording",
    "using",
]
