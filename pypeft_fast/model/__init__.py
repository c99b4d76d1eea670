"""Adapters on whole models: configs, wrapping, switching, files in PEFT's format."""

from .bitfit_config import BitFitConfig
from .bottleneck_config import BottleneckConfig
from .config import PeftConfig, PeftType, TaskType
from .fuse import FuseReport, fuse, register, unfuse
from .ia3_config import IA3Config
from .lora_config import LoraConfig
from .peft_model import PeftModel
from .prompt_config import PrefixTuningConfig, PromptTuningConfig, PromptTuningInit
from .registry import get_peft_config
from .task_models import get_peft_model

__all__ = [
    "BitFitConfig",
    "BottleneckConfig",
    "IA3Config",
    "LoraConfig",
    "PeftConfig",
    "PeftModel",
    "PeftType",
    "PrefixTuningConfig",
    "PromptTuningConfig",
    "PromptTuningInit",
    "TaskType",
    "get_peft_config",
    "get_peft_model",
    "FuseReport",
    "fuse",
    "register",
    "unfuse",
]
