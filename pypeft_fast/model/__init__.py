"""Adapters on whole models: configs, wrapping, switching, files in PEFT's format."""

from .config import LoraConfig, PeftType, TaskType, get_peft_config
from .fuse import FuseReport, fuse, register, unfuse
from .peft_model import PeftModel
from .task_models import get_peft_model

__all__ = [
    "FuseReport",
    "LoraConfig",
    "PeftModel",
    "PeftType",
    "TaskType",
    "fuse",
    "get_peft_config",
    "get_peft_model",
    "register",
    "unfuse",
]
