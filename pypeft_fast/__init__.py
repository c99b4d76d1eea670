"""pypeft_fast: LoRA fused with the frozen layer, forward and backward, and whole models around it."""

# The first import from kernels/ sets the name `kernels` here: let it be now, so that the function below keeps the name.
from . import kernels as _folder  # noqa: F401
from . import nn
from ._op import kernels, recording, using
from .autograd.ia3 import ia3_linear
from .autograd.lora import lora_linear
from .model import LoraConfig, PeftModel, PeftType, TaskType, get_peft_config, get_peft_model

__version__ = "0.1.0"
__all__ = [
    "LoraConfig",
    "PeftModel",
    "PeftType",
    "TaskType",
    "get_peft_config",
    "get_peft_model",
    "ia3_linear",
    "kernels",
    "lora_linear",
    "nn",
    "recording",
    "using",
]
