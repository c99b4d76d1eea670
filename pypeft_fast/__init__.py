"""pypeft_fast: LoRA fused with the frozen layer, forward and backward, and whole models around it."""

from . import nn
from ._op import kernels, recording, using
from .autograd.lora import lora_linear

__version__ = "0.1.0"
__all__ = ["kernels", "lora_linear", "nn", "recording", "using"]
