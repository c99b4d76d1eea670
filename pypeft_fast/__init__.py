"""pypeft_fast: LoRA fused with the frozen layer, forward and backward, and whole models around it."""

import importlib

# The first import from kernels/ sets the name `kernels` here: let it be now, so that the function below keeps the name.
from . import kernels as _folder  # noqa: F401
from . import nn
from ._op import kernels, recording, using
from .autograd.dora import dora_linear
from .autograd.ia3 import ia3_linear
from .autograd.lora import lora_linear
from .autograd.lora_mlp import lora_gated_linear
from .model import (
    BitFitConfig,
    BottleneckConfig,
    FuseReport,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    fuse,
    get_peft_config,
    get_peft_model,
    register,
    unfuse,
)

__version__ = "0.1.0"
__all__ = [
    "BitFitConfig",
    "BottleneckConfig",
    "IA3Config",
    "FuseReport",
    "LoraConfig",
    "PeftConfig",
    "PeftModel",
    "PeftType",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "TaskType",
    "dora_linear",
    "fuse",
    "get_peft_config",
    "get_peft_model",
    "ia3_linear",
    "kernels",
    "lora_gated_linear",
    "lora_linear",
    "nn",
    "recording",
    "register",
    "unfuse",
    "using",
]


# These derive from classes of transformers, whose import takes seconds: loaded when asked for.
_LATE = {"AdapterTrainer": "trainer", "FuseCallback": "fuse_callback"}


def __getattr__(name):
    if name in _LATE:
        return getattr(importlib.import_module(f".model.{_LATE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
